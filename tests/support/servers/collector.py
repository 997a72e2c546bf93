"""A server that shows how its processes collect garbage."""

from __future__ import annotations

import gc

from mcp_celery import TaskServer

server = TaskServer("collector")


@server.tool(task=True)
def collector() -> str:
    """Say how this process collects garbage."""
    return "tuned" if gc.get_freeze_count() > 10_000 and gc.get_threshold()[0] > 10_000 else "default"
