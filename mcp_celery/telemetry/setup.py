"""Which exporters a process has: ``MCP_CELERY_TELEMETRY``, and what the extra ``telemetry`` brings for it."""

from __future__ import annotations

import asyncio
import threading
from http import HTTPStatus
from importlib.util import find_spec
from typing import Final, Protocol

from mcp_celery.common.endpoints import METRICS, Answer, Endpoints
from mcp_celery.errors import ConfigurationError
from mcp_celery.settings import Exporter
from mcp_celery.telemetry.children import ChildMeasurements
from mcp_celery.telemetry.instruments import is_measured, is_traced

FLUSH_SECONDS: Final = 2.0
"""How long the end of a process waits for its last spans and metrics to be sent."""
_NEEDED: Final = ("opentelemetry.sdk", "opentelemetry.exporter.prometheus", "opentelemetry.exporter.otlp.proto.http")


class _Exporting(Protocol):
    """The telemetry of this process."""

    def exposition(self) -> tuple[bytes, str]: ...

    def flush(self) -> None: ...


class _Process:
    """The telemetry of this process, which has one at most: OpenTelemetry's providers are global."""

    def __init__(self) -> None:
        self.exporting: _Exporting | None = None
        self.children: ChildMeasurements | None = None
        self.lock = threading.Lock()


_process: Final = _Process()


def set_up(exporters: frozenset[Exporter], service: str) -> None:
    """Configure OpenTelemetry's SDK in this process, once.

    Args:
        exporters: What ``MCP_CELERY_TELEMETRY`` names. Empty: nothing is configured.
        service: The name of the service, where ``OTEL_SERVICE_NAME`` names none.

    Raises:
        ConfigurationError: The extra ``telemetry`` is not installed.
    """
    if not exporters:
        return
    with _process.lock:
        if _process.exporting is not None:
            return
        require_installed(exporters)
        from mcp_celery.telemetry.sdk import start  # noqa: PLC0415 - the extra may be absent, and takes time to import

        _process.exporting = start(exporters, service)
        is_measured.look()
        is_traced.look()


def require_installed(exporters: frozenset[Exporter]) -> None:
    """Refuse exporters for which packages are missing.

    Args:
        exporters: What ``MCP_CELERY_TELEMETRY`` names.

    Raises:
        ConfigurationError: The extra ``telemetry`` is not installed.
    """
    if exporters and not _is_installed():
        raise ConfigurationError(
            "MCP_CELERY_TELEMETRY needs OpenTelemetry's SDK: pip install 'mcp-celery-backend[telemetry]'"
        )


def _is_installed() -> bool:
    try:
        return all(find_spec(name) is not None for name in _NEEDED)
    except ModuleNotFoundError:  # of a package that a name is in
        return False


def metrics_endpoint(exporters: frozenset[Exporter]) -> Endpoints:
    """The endpoint of the metrics in Prometheus' format, where there are any.

    Args:
        exporters: What ``MCP_CELERY_TELEMETRY`` names.
    """
    return {METRICS: _respond} if "prometheus" in exporters else {}


async def _respond() -> Answer:
    exporting = _process.exporting
    if exporting is None:  # the server does not serve yet
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"", "text/plain")
    if _process.children is not None:
        await asyncio.to_thread(_process.children.drain)
    return Answer(HTTPStatus.OK, *await asyncio.to_thread(exporting.exposition))


def collect_from_children() -> ChildMeasurements | None:
    """Take what the child processes measure that this process forks from now on.

    Returns:
        What reads it, once it is started; None where nothing is exported.
    """
    if _process.exporting is not None and _process.children is None:
        _process.children = ChildMeasurements()
    return _process.children


def measure_in_child(**_: object) -> None:
    """Have the measurements of a child process go to its parent, where that collects them. A handler of a signal."""
    if _process.children is not None:
        _process.children.use_in_child()


def stop_children() -> None:
    """Take what is left of the child processes' measurements."""
    children, _process.children = _process.children, None
    if children is not None:
        children.stop()


def flush() -> None:
    """Send what was not sent yet, and wait for that for a moment: a receiver that is gone holds no process up."""
    if _process.exporting is not None:
        sending = threading.Thread(target=_process.exporting.flush, name="mcp-celery-telemetry-flush", daemon=True)
        sending.start()
        sending.join(FLUSH_SECONDS)
