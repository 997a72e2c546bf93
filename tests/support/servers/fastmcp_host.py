"""A Celery app that somebody has already, with jobs and two FastMCP servers in it."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, chain
from fastmcp import Context, FastMCP

import mcp_celery
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.fastmcp import TaskConfig, TasksExtension

address = celery_url(os.environ["MCP_CELERY_REDIS_URL"])
app = Celery("host", broker=address, backend=address, set_as_current=False)
app.conf.update(result_expires=3600, result_extended=False)
mcp_celery.install(app, f"{__name__}:mcp")


@app.task(name="host.add")
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@app.task(name="host.where")
def where() -> int:
    return os.getpid()


@app.task(name="host.fail")
def fail() -> None:
    raise ValueError("a detail")


def added_up(first: int, second: int) -> Any:
    """Add one number after the other."""
    return chain(add.s(first, second), add.s(10))


def build(*, polls: bool) -> FastMCP[Any]:
    """A server.

    Args:
        polls: Whether clients without tasks get tools to poll one.
    """
    server: FastMCP[Any] = FastMCP("host")
    tasks = TasksExtension(celery=app)
    server.add_extension(tasks)
    tasks.expose(add, name="add")
    tasks.expose_all(app, include=["host.*"], exclude=["host.add"])
    tasks.expose_canvas(added_up)

    @server.tool(task=TaskConfig(foreground="worker"))
    async def process(steps: int, ctx: Context) -> dict[str, int]:
        for step in range(steps):
            await ctx.report_progress(step + 1, steps, "working")
        return {"process": os.getpid()}

    @server.tool(task=TaskConfig(foreground="worker"))
    async def ask(ctx: Context) -> str:
        answer = await ctx.elicit("Which city?", str)
        return f"{answer.action} {getattr(answer, 'data', None)}"

    @server.tool(task=True)
    async def here() -> int:
        return os.getpid()

    if polls:
        tasks.add_polling_tools(after=0)
    return server


mcp = build(polls="HOST_POLLS" in os.environ)
