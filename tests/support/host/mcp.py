"""Their MCP servers, made with their app."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import anyio
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult

from mcp_celery import TaskConfig, TaskMeta, TaskServer, get_task_context
from tests.support.host.celery import NAME, app

TRIED_AGAIN = TaskConfig(autoretry_for=(ConnectionError,), max_retries=3, retry_backoff=True, retry_jitter=False)

server = TaskServer(NAME, task=True, celery=app)
other = TaskServer(f"{NAME}-other", task=True, celery=app)
namesake = TaskServer(NAME, task=True, celery=app)
stranger = TaskServer("stranger", task=True)


@server.tool()
@other.tool()
async def add(a: int, b: int, ctx: Context) -> int:
    await ctx.report_progress(1, 1, "added")
    return a + b


@server.tool()
def whereabouts() -> dict[str, str]:
    """A sync tool: its process, its thread, and the job."""
    context = get_task_context()
    return {
        "process": str(os.getpid()),
        "thread": threading.current_thread().name,
        "job": "" if context is None else context.job_id,
    }


server.tool("routed")(whereabouts)
server.tool("expiring", task=TaskConfig(expires=60))(whereabouts)


@server.tool(task=TRIED_AGAIN)
async def fails_at_first(path: str) -> str:
    with Path(path).open("a+") as tries:  # noqa: ASYNC230
        tries.write("tried\n")
        tries.seek(0)
        if len(tries.readlines()) == 1:
            raise ConnectionError("not yet")
    return "at last"


@server.tool()
async def refuse() -> str:
    raise MCPError(-32050, "the gears are stuck", {"gear": 7})


@server.tool()
def complain() -> str:
    raise ToolError("No such dataset")


@server.tool()
async def hold(path: str) -> str:
    """Waits for a file, and says when it is cancelled."""
    await anyio.Path(f"{path}.held").touch()
    try:
        while not await anyio.Path(path).exists():  # noqa: ASYNC110 - a file is what another process can make
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        Path(f"{path}.cancelled").touch()  # noqa: ASYNC240 - who is cancelled does not wait
        raise
    return "released"


@server.tool()
async def delegating(ctx: Context) -> CallToolResult:
    """Leaves the work to another task; gives its id."""
    submitted = await server.call_tool("add", {"a": 20, "b": 22}, ctx, task_meta=TaskMeta())
    return CallToolResult(content=[], structured_content={"task": submitted.task_id})
