"""A FastMCP server put together: middleware, mounts, versions; transformed, injected, hidden and proxied tools."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastmcp import Context, FastMCP
from fastmcp.server import create_proxy
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.server.middleware.tool_injection import ToolInjectionMiddleware
from fastmcp.server.transforms import ToolTransform
from fastmcp.server.transforms.search import BM25SearchTransform
from fastmcp.tools import Tool
from fastmcp.tools.tool_transform import ArgTransform, ToolTransformConfig, forward
from mcp_types import CallToolRequestParams, ToolAnnotations

from mcp_celery.fastmcp import TaskConfig, TasksExtension

seen: list[list[Any]] = []


class Watch(Middleware):
    """Notes in this process what it sees, and refuses one tool."""

    async def on_message(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        seen.append(["message", context.method])
        return await call_next(context)

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, Any]
    ) -> Any:
        seen.append(["call", context.message.name])
        if context.message.name == "edited":
            context.message.arguments = {"value": "by the middleware"}
        return await call_next(context)


async def injected(value: int) -> int:
    return os.getpid() + value


mcp = FastMCP("composed", middleware=[ToolInjectionMiddleware([Tool.from_function(injected, task=True)]), Watch()])
mcp.add_extension(TasksExtension())


@asynccontextmanager
async def lifespan(_: FastMCP[Any]) -> AsyncGenerator[dict[str, Any]]:
    yield {"whose": "the grandchild's"}


child = FastMCP("child")
grandchild = FastMCP("grandchild", lifespan=lifespan)
child.mount(grandchild, namespace="deep")
mcp.mount(child, namespace="kid")


@mcp.tool
async def look() -> dict[str, Any]:
    """What this process's middleware has seen since the last look."""
    found = list(seen)
    seen.clear()
    return {"seen": found, "process": os.getpid()}


@mcp.tool(task=True)
async def work() -> dict[str, Any]:
    return {"seen": [*seen], "process": os.getpid()}


@mcp.tool(task=True)
async def edited(value: str) -> str:
    return value


@child.tool(task=True)
async def hello(name: str) -> str:
    return f"hello {name} in {os.getpid()}"


@grandchild.tool(task=TaskConfig(mode="required"))
async def hello_there(ctx: Context) -> str:
    return f"{ctx.fastmcp.name} {ctx.lifespan_context['whose']}"


# --- Versions


@mcp.tool("versioned", version="1.0", task=True)
async def first_version() -> str:
    return "one"


@mcp.tool("versioned", version="2.0", task=True)
async def second_version(word: str = "two") -> str:
    return word


# --- Transformed tools


async def add(a: int, b: int = 1, c: int = 0) -> int:
    return a + b + c


parent = Tool.from_function(add, task=True)
mcp.add_tool(
    Tool.from_tool(
        parent, name="renamed", transform_args={"a": ArgTransform(name="x"), "c": ArgTransform(hide=True, default=100)}
    )
)


async def twice(a: int, b: int) -> int:
    result = await forward(a=a, b=b)
    assert result.structured_content is not None
    return 2 * result.structured_content["result"]


mcp.add_tool(Tool.from_tool(parent, name="doubled", transform_fn=twice, transform_args={"c": ArgTransform(hide=True)}))
child.add_tool(parent)
child.add_transform(ToolTransform({"add": ToolTransformConfig(name="sum")}))


# --- Hidden tools


@mcp.tool(task=True, tags={"locked"})
async def locked(number: int) -> int:
    return number


mcp.disable(tags={"locked"})


@mcp.tool
async def unlock(ctx: Context) -> str:
    await ctx.enable_components(tags={"locked"})
    return "unlocked for this session"


catalog = FastMCP("catalog", transforms=[BM25SearchTransform()])
mcp.mount(catalog, namespace="catalog")


@catalog.tool(task=True)
async def found(number: int) -> int:
    """Found by a search, and not listed."""
    return number


# --- Another server's tools

far = FastMCP("far")


@far.tool
async def away() -> int:
    return os.getpid()


mcp.mount(create_proxy(far), namespace="far")


@mcp.tool(task=True, annotations=ToolAnnotations(read_only_hint=True))
async def reads() -> str:
    return "read"
