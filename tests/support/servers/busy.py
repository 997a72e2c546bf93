"""A server that has more to do than it can: its tools become tasks, or keep its event loop from everything else."""

from __future__ import annotations

import time

from mcp_celery import TaskConfig, TaskServer

server = TaskServer("busy")


@server.tool(task=TaskConfig(mode="required"))
async def work(number: int) -> int:
    """Run as a task."""
    return number


@server.tool()
async def block(seconds: float) -> str:
    """Keep the server's event loop, as a tool does that computes, or that calls a library which blocks."""
    time.sleep(seconds)  # noqa: ASYNC251 - on purpose
    return "done"
