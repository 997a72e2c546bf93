"""Where a worker answers probes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mcp_celery.settings import Exporter, Settings

LATE_SECONDS = 5.0
"""How much later than its lease a heartbeat may come before the thread that makes them counts as dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """Where a worker answers probes.

    Attributes:
        port: Port of ``/healthz`` and ``/readyz``, None for none.
        host: Address to listen on with it.
        file: The heartbeat file, None for none.
        overdue_seconds: After which time without a heartbeat the worker counts as dead.
        exporters: How its metrics are exported.
    """

    port: int | None
    host: str
    file: Path | None
    overdue_seconds: float
    exporters: frozenset[Exporter] = frozenset()

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Read the settings; None where they configure no probe."""
        if settings.worker_health_port is None and settings.worker_heartbeat_file is None:
            return None
        return cls(
            port=settings.worker_health_port,
            host=settings.health_host or "127.0.0.1",
            file=None if settings.worker_heartbeat_file is None else Path(settings.worker_heartbeat_file),
            overdue_seconds=3 * settings.heartbeat_ms / 1000 + LATE_SECONDS,
            exporters=settings.exporters,
        )
