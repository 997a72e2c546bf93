"""A server whose tools may run here or on a worker, for clients that follow no task. The test says where."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from celery import Celery
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import (
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ImageContent,
    InputRequiredResult,
    TextContent,
)
from pydantic import BaseModel

from mcp_celery import Settings, TaskConfig, TaskServer, get_task_context


class Node(BaseModel):
    """A structured result, whose schema refers to itself."""

    label: str
    children: list[Node] = []


class Name(BaseModel):
    """An answer."""

    name: str


def note(path: str, line: str) -> None:
    with Path(path).open("a") as notes:
        notes.write(f"{line}\n")


def build(*, celery: Celery | None = None, settings: Settings | None = None, **options: Any) -> TaskServer:  # noqa: C901 - many tools, none of them complex
    """Make the server."""
    server = TaskServer("foreground", task=True, log_level="WARNING", celery=celery, settings=settings, **options)

    @server.tool()
    def where() -> str:
        return "here" if get_task_context() is None else "on a worker"

    server.tool("where_here", task=TaskConfig(foreground="server"))(where)
    server.tool("where_on_a_worker", task=TaskConfig(foreground="worker"))(where)
    server.tool("where_required", task=TaskConfig(mode="required"))(where)
    server.tool("where_short_lived", task=TaskConfig(ttl=1))(where)

    @server.tool()
    async def tree(label: str, depth: int) -> Node:
        return Node(label=label, children=[] if depth == 0 else [await tree(label, depth - 1)])

    @server.tool()
    def content() -> CallToolResult:
        image = ImageContent(type="image", data="AAAA", mime_type="image/png")
        return CallToolResult(content=[TextContent(type="text", text="ä"), image], _meta={"kitchen/oven": 7})

    @server.tool()
    async def refuses() -> str:
        raise ToolError("No such dataset")

    @server.tool()
    def crashes() -> str:
        raise ValueError("boom")

    @server.tool()
    async def rpc_error() -> str:
        raise MCPError(-32050, "the gears are stuck", {"gear": 7})

    @server.tool()
    async def counting(steps: int, ctx: Context) -> str:
        for step in range(1, steps + 1):
            await ctx.report_progress(step, steps, f"step {step}")
            await asyncio.sleep(0.12)
        await ctx.report_progress(1, steps, "backwards")
        return f"counted to {steps}"

    @server.tool()
    async def noted(notes: str, ctx: Context) -> str:
        """Notes when it begins and ends, and does not end by itself."""
        note(notes, "begun")
        await ctx.report_progress(1)
        try:
            await asyncio.Event().wait()
        finally:
            note(notes, "ended")
        return "never"

    @server.tool()
    async def wait_for_file(path: str) -> Node:
        while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - a file is what another process can make
            await asyncio.sleep(0.01)
        return Node(label="released")

    @server.tool()
    async def greet(ctx: Context) -> str:
        first = await ctx.elicit("Your name?", Name)
        second = await ctx.elicit("And your dog's?", Name)
        names = [answer.data.name for answer in (first, second) if answer.action == "accept"]
        return f"Hello, {' and '.join(names)}!"

    @server.tool()
    async def greet_in_rounds(ctx: Context) -> str | InputRequiredResult:
        if not ctx.input_responses:
            question = ElicitRequestFormParams(message="Your name?", requested_schema=Name.model_json_schema())
            asked: Any = {"who": ElicitRequest(params=question)}
            return InputRequiredResult(input_requests=asked, request_state="its own")
        answer: Any = ctx.input_responses["who"]
        return f"Hello, {answer.content['name']}, {ctx.request_state}!"

    return server


server = build()
