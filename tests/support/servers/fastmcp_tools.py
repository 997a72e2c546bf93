"""A FastMCP server whose tools run as Celery jobs, and how another process of the same server is made."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastmcp import Context, FastMCP
from fastmcp.server.auth import AuthProvider, require_scopes
from fastmcp.server.dependencies import get_access_token

from mcp_celery.fastmcp import TaskConfig, TasksExtension


@asynccontextmanager
async def lifespan(_: FastMCP[Any]) -> AsyncGenerator[dict[str, Any]]:
    yield {"opened by": os.getpid()}


async def here() -> int:
    """In the server, for it is no task."""
    return os.getpid()


async def where(ctx: Context) -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "lifespan": ctx.lifespan_context,
        "task": ctx.task_id,
        "background": ctx.is_background_task,
    }


async def count(steps: int, ctx: Context) -> str:
    for step in range(steps):
        await ctx.report_progress(step + 1, steps, "counting")
        await asyncio.sleep(0.05)
    return f"counted {steps}"


def plain_function(seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    return {"process": os.getpid()}


async def must() -> str:
    return "must"


async def wait() -> str:
    await asyncio.sleep(60)
    return "too late"


async def who() -> dict[str, Any]:
    token = get_access_token()
    return {} if token is None else {"sub": token.claims.get("sub"), "scopes": token.scopes, "token": token.token}


async def admin() -> str:
    return "admin"


def build(auth: AuthProvider | None = None, **options: Any) -> FastMCP[Any]:
    """The server.

    Args:
        auth: Verifies tokens.
        **options: Of its extension.
    """
    server: FastMCP[Any] = FastMCP("tools", lifespan=lifespan, auth=auth)
    server.add_extension(TasksExtension(**options))
    server.tool(here)
    server.tool(where, task=True)
    server.tool(count, task=True)
    server.tool(plain_function, task=TaskConfig(time_limit=60))
    server.tool(must, task=TaskConfig(mode="required"))
    server.tool(wait, task=True)
    server.tool(who, task=True)
    server.tool(admin, task=True, auth=require_scopes("admin"))
    return server


mcp = build()
