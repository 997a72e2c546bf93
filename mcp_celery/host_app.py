"""A user's Celery app: its workers run a server's jobs and consume its queue, and keep their own settings.

Only a worker imports the server, when it starts: the server's module imports the app's, and ``flower``, ``beat``,
``inspect`` and the host's web processes need no server. They call `install` too, where the app is made;
so what only workers need is named here and imported by them, as Celery does with its own steps.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

from celery import Celery, signals
from kombu.utils.imports import symbol_by_name

LOG_FORMAT_VARIABLE: Final = "MCP_CELERY_LOG_FORMAT"
_FORMAT_HANDLERS: Final = "mcp_celery.json_logs:format_handlers"
"""The function that only processes import that want another log format."""
_HOSTED_WORKER: Final = "mcp_celery.server.hosted_worker"
"""The module that only workers import."""
# The bootsteps of our jobs, by name: workers alone import them.
_WORKER_STEPS: Final = (
    "mcp_celery.worker.celery.bootsteps:ConsumerTimeout",
    "mcp_celery.worker.celery.bootsteps:Vitals",
    "mcp_celery.worker.celery.probes:Probes",
    "mcp_celery.worker.celery.bootsteps:FollowEnds",
    "mcp_celery.worker.celery.measuring:Measuring",
    "mcp_celery.worker.celery.declaring:DeclareQueues",
    "mcp_celery.worker.celery.revocations:WatchRevoked",
    "mcp_celery.worker.celery.answering:AnswerOperators",
)
_CONSUMER_STEPS: Final = (
    "mcp_celery.worker.celery.bootsteps:Reconnection",
    "mcp_celery.worker.celery.bootsteps:Ending",
    "mcp_celery.worker.celery.probes:ConnectedState",
    "mcp_celery.worker.celery.handing_back:HandingBack",
    "mcp_celery.asyncio_pool.elastic:Elastic",
)


@dataclass
class Host:
    """The servers installed in an app, and the queues that its worker's command line names."""

    servers: list[str] = field(default_factory=list[str])
    named: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()


hosts: Final[WeakKeyDictionary[Celery, Host]] = WeakKeyDictionary()
"""The apps in which servers are installed."""


def install(app: Celery, server: str) -> None:
    """Have the workers of a Celery app run the jobs of a server.

    ```python
    app = Celery("proj")
    mcp_celery.install(app, "proj.mcp:server")
    ```

    Call it where the app is made, once for each server. The server's module is imported when a worker starts, and by
    no other process. A worker then consumes the server's queue too, unless ``-Q`` names others or ``-X`` excludes it.
    The app's configuration is not changed.

    Args:
        app: Your Celery app.
        server: The server, as ``module:attribute``; it is made with ``celery=app``.
    """
    host = hosts.setdefault(app, Host())
    if server not in host.servers:
        host.servers.append(server)
    signals.after_setup_logger.connect(_format_logs, weak=False, dispatch_uid="mcp_celery.format_logs")
    signals.after_setup_task_logger.connect(_format_logs, weak=False, dispatch_uid="mcp_celery.format_task_logs")
    signals.celeryd_init.connect(_note_queues, weak=False, dispatch_uid="mcp_celery.note_queues")
    app.steps["worker"].add(f"{_HOSTED_WORKER}:HostedServers")
    add_steps(app)


def _format_logs(logger: Any = None, **_: Any) -> None:
    """Have the handlers that Celery has made write JSON, where a setting says so; else they stay as the host's."""
    if os.environ.get(LOG_FORMAT_VARIABLE) == "json":
        symbol_by_name(_FORMAT_HANDLERS)(logger)


def _note_queues(instance: Any = None, options: Any = None, **_: Any) -> None:
    if (host := hosts.get(instance.app)) is not None:
        symbol_by_name(f"{_HOSTED_WORKER}:note_queues")(instance.app, host, options)


def add_steps(app: Celery) -> None:
    """Add the steps to an app's workers. Too late when a worker collects its steps."""
    app.steps["worker"].update(_WORKER_STEPS)
    app.steps["consumer"].update(_CONSUMER_STEPS)
