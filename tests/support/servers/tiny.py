"""A server of another kind than ``MCPServer``, whose tools run as tasks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel

from mcp_celery import CeleryTasks, TaskConfig, get_task_context, get_task_server
from tests.support.tiny_server import TinyServer, TinySource


class Name(BaseModel):
    name: str


@asynccontextmanager
async def lifespan(_: Any) -> AsyncGenerator[str]:
    yield f"opened by {os.getpid()}"


server = TinyServer("tiny", lifespan=lifespan)
child = TinyServer("child")
server.mount("kid", child)


@server.tool(task=TaskConfig())
async def count(steps: int, ctx: Context[Any, Any]) -> dict[str, Any]:
    for step in range(steps):
        await ctx.report_progress(step + 1, steps, "counting")
    task = get_task_context()
    return {
        "steps": steps,
        "process": os.getpid(),
        "lifespan": ctx.request_context.lifespan_context,
        "task": None if task is None else task.key.client_task_id,
        "server": getattr(get_task_server(), "name", None),
    }


@server.tool("greet", version="1")
async def greet_anybody() -> str:
    return "hello"


@server.tool(version="2", task=TaskConfig(mode="required"))
async def greet(name: str) -> str:
    return f"hello {name}"


@server.tool(task=TaskConfig())
async def ask(ctx: Context[Any, Any]) -> str:
    answer = await ctx.elicit("Who are you?", Name)
    return f"{answer.action} {getattr(answer, 'data', None)}"


@server.tool(task=TaskConfig())
async def fail(deliberately: bool) -> str:
    raise ToolError("as expected") if deliberately else ValueError("a secret")


@server.tool(task=TaskConfig(autoretry_for=(ConnectionError,), max_retries=1, retry_backoff=1, retry_jitter=False))
async def flaky(tried: str) -> str:
    if not await (marker := anyio.Path(tried)).exists():
        await marker.touch()
        raise ConnectionError("not yet")
    return "the second time"


@server.tool(task=TaskConfig())
async def wait() -> str:
    await asyncio.sleep(60)
    return "too late"


@server.tool()
async def plain() -> int:
    return os.getpid()


@child.tool(task=TaskConfig())
async def hello() -> str:
    return "hello from the child"


tasks = CeleryTasks(tools={"hidden": False})


@server.tool(task=TaskConfig())
async def hidden() -> int:
    return os.getpid()


tasks.install(TinySource(server))
tasks.add_polling_tools(after=20)
