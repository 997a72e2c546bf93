"""What our jobs need at the start of a worker: Celery's bootsteps, by name, which workers alone import."""

from __future__ import annotations

from typing import Final

from celery import Celery

_WORKER: Final = (
    "mcp_celery.worker.steps:ConsumerTimeout",
    "mcp_celery.worker.steps:Vitals",
    "mcp_celery.worker.revoked:WatchRevoked",
)
_CONSUMER: Final = (
    "mcp_celery.worker.steps:Reconnection",
    "mcp_celery.worker.steps:Ending",
    "mcp_celery.worker.elastic:Elastic",
)


def add_steps(app: Celery) -> None:
    """Add the steps to an app's workers. Too late when a worker collects its steps."""
    app.steps["worker"].update(_WORKER)
    app.steps["consumer"].update(_CONSUMER)
