"""A FastMCP server with what FastMCP gives the functions of tools, and what they may return and raise."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast

import httpx2
from fastmcp import Context, FastMCP
from fastmcp.dependencies import CurrentContext, CurrentFastMCP, CurrentHeaders, Depends, Progress, Shared
from fastmcp.exceptions import ToolError
from fastmcp.server.dependencies import get_access_token, get_context, get_http_headers, get_http_request
from fastmcp.tools.base import ToolResult
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult, SamplingMessage
from mcp_types import TextContent as Text
from pydantic import BaseModel, Field

from mcp_celery.fastmcp import TaskConfig, TasksExtension

mcp = FastMCP("features")
mcp.add_extension(TasksExtension())
strict = FastMCP("strict", strict_input_validation=True)
masked = FastMCP("masked", mask_error_details=True)
mcp.mount(strict, namespace="strict")
mcp.mount(masked, namespace="masked")


class City(BaseModel):
    city: str


class Total(BaseModel):
    total: int


# --- Arguments


async def double(number: int, at_most: Annotated[int, Field(le=10)] = 10) -> int:
    return min(2 * number, at_most)


mcp.tool(double, task=True)
strict.tool(double, task=True)


# --- Results


@mcp.tool(task=True)
async def result() -> ToolResult:
    return ToolResult(content="text", structured_content={"key": 1}, meta={"meta": 2})


@mcp.tool(task=True)
async def model(a: int, b: int) -> Total:
    return Total(total=a + b)


@mcp.tool(task=True)
async def nothing() -> None:
    return None


@mcp.tool(task=TaskConfig())
async def generate(n: int) -> AsyncGenerator[int]:
    for number in range(n):
        yield number


@mcp.tool(task=TaskConfig())
def generate_here(n: int) -> Generator[int]:
    yield from range(n)


# --- Errors


@mcp.tool(task=True)
async def fail(how: str) -> str:
    response = httpx2.Response(429, request=httpx2.Request("GET", "http://upstream"))
    raise {
        "deliberately": ToolError("as expected"),
        "unexpectedly": ValueError("a detail"),
        "limited": httpx2.HTTPStatusError("slow down", request=response.request, response=response),
        "by protocol": MCPError(-32050, "the gears are stuck", {"gear": 7}),
    }[how]


masked.tool(fail, task=True)


@mcp.tool(task=True, timeout=0.2)
async def slow() -> str:
    await asyncio.sleep(60)
    return "too late"


# --- What a function is given


async def dependency(ctx: Context = CurrentContext()) -> str:
    return f"dependency of {ctx.fastmcp.name}"


@asynccontextmanager
async def connection() -> AsyncGenerator[str]:
    yield "open"


made: list[int] = []


async def shared() -> int:
    made.append(1)
    return len(made)


@mcp.tool(task=True)
async def injected(
    a: str = Depends(dependency),
    c: str = Depends(connection),
    s: int = Shared(shared),
    headers: dict[str, str] = CurrentHeaders(),
    server: FastMCP[Any] = CurrentFastMCP(),
) -> dict[str, Any]:
    try:
        request = str(get_http_request())
    except RuntimeError:
        request = "none"
    return {
        "depends": [a, c],
        "shared": s,
        "headers": [headers.get("x-trace"), get_http_headers().get("x-trace")],
        "server": [server.name, get_context().fastmcp.name],
        "token": get_access_token() is not None,
        "request": request,
    }


@masked.tool(task=True)
async def whose(server: FastMCP[Any] = CurrentFastMCP(), ctx: Context = CurrentContext()) -> list[str]:
    return [server.name, ctx.fastmcp.name]


@mcp.tool(task=True)
async def files(names: list[str], progress: Progress = Progress()) -> str:
    await progress.set_total(len(names))
    for name in names:
        await progress.set_message(f"reading {name}")
        await progress.increment()
    return "read"


@mcp.tool(task=True)
async def says(ctx: Context) -> str:
    await ctx.info("on my way", extra={"miles": 3})
    return ctx.request_id


@mcp.resource("data://price")
async def price() -> str:
    return f"42 in {os.getpid()}"


@mcp.tool(task=True)
async def nested(ctx: Context) -> dict[str, Any]:
    read = await ctx.read_resource("data://price")
    called = await ctx.fastmcp.call_tool("double", {"number": 4})
    return {"read": read.contents[0].content, "called": called.structured_content, "process": os.getpid()}


@mcp.tool(task=TaskConfig(mode="required"))
async def required() -> str:
    return "required"


@mcp.tool(task=True)
async def calls_required(ctx: Context) -> str:
    return str(await ctx.fastmcp.call_tool("required", {}))


# --- Questions


@mcp.tool(task=True)
async def ask(ctx: Context) -> str:
    answer = await ctx.elicit("Which city?", City)
    return f"{answer.action} {getattr(answer, 'data', None)}"


@mcp.tool(task=True)
async def sample(ctx: Context) -> str:
    asked = [SamplingMessage(role="user", content=Text(type="text", text="2 + 2?"))]
    answer = await ctx.session.create_message(asked, max_tokens=9, related_request_id=ctx.request_id)  # pyright: ignore[reportDeprecated]
    return cast(Text, answer.content).text


@mcp.tool(task=True)
async def guard(ctx: Context) -> str | InputRequiredResult:
    """Asks by returning, works between two questions, and then asks by awaiting."""
    state, answers = ctx.request_state, ctx.input_responses
    if state is None:
        await ctx.set_state("remembered", "from the first round")
        form = ElicitRequestFormParams(message="City?", requested_schema=City.model_json_schema())
        return InputRequiredResult(input_requests={"city": ElicitRequest(params=form)}, request_state="asked")
    if state == "asked":
        city = cast(ElicitResult, (answers or {})["city"]).content or {}
        return InputRequiredResult(request_state=f"in {city['city']}")  # asks nothing: it is called again
    confirmed = await ctx.elicit("Sure?", bool)
    return f"{state}, {confirmed.action}, {await ctx.get_state('remembered')}"
