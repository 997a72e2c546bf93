"""A server whose tool works until its owner is gone."""

from __future__ import annotations

import asyncio

from mcp_celery import TaskConfig, TaskServer

server = TaskServer("abandoning", log_level="WARNING")


@server.tool(task=TaskConfig(abandon_after=6))
async def wait_for_the_end() -> str:
    try:
        await asyncio.Event().wait()
    finally:
        print("the tool has ended", flush=True)  # noqa: T201 - the worker's log
    return "never"
