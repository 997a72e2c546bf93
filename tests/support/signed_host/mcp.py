"""Their MCP server, made with their app."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
from mcp.shared.exceptions import MCPError

from mcp_celery import TaskConfig, TaskServer
from tests.support.signed_host.celery import NAME, app, count

TRIED_AGAIN = TaskConfig(autoretry_for=(ConnectionError,), max_retries=3, retry_backoff=True, retry_jitter=False)

server = TaskServer(NAME, task=True, celery=app)
server.expose(count, name="count")


@server.tool()
async def add(a: int, b: int) -> int:
    return a + b


@server.tool(task=TRIED_AGAIN)
async def fails_at_first(path: str) -> str:
    if not Path(path).exists():  # noqa: ASYNC240
        Path(path).touch()  # noqa: ASYNC240
        raise ConnectionError("not yet")
    return "at last"


@server.tool()
async def refuse() -> str:
    raise MCPError(-32050, "the gears are stuck", {"gear": 7})


@server.tool()
async def hold(path: str) -> str:
    """Says when it is held, and when it is cancelled."""
    await anyio.Path(f"{path}.held").touch()
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        Path(f"{path}.cancelled").touch()  # noqa: ASYNC240 - who is cancelled does not wait
        raise
    return "released"
