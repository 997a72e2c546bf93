"""A server with a tool for each thing that a job may do. The worker and the test each make their own."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import anyio.from_thread
from celery import Celery
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ContentBlock, TextContent, ToolAnnotations
from pydantic import BaseModel

from mcp_celery import (
    Settings,
    TaskConfig,
    TaskServer,
    get_task_context,
    get_task_scope,
    get_task_server,
    get_task_session_id,
)

WITNESS_VARIABLE: Final = "TEST_LIFESPAN_WITNESS"
"""Names the file that learns when the lifespan is entered and left."""

LIMITED: Final = TaskConfig(time_limit=1)
SOFTLY_LIMITED: Final = TaskConfig(soft_time_limit=1)
HOLD_SECONDS: Final = 300.0
PIXEL: Final = b"\x89PNG\r\n\x1a\n not much of a picture"

remembered: ContextVar[str] = ContextVar("remembered", default="nothing")


class Weather(BaseModel):
    city: str
    celsius: float
    warnings: list[str] = []


class Whereabouts(BaseModel):
    pid: int
    request_id: str
    headers: dict[str, str] | None
    client_id: str | None
    subject: str | None
    token: str | None
    scope: str | None
    session_id: str | None
    job_id: str | None
    task_id: str | None
    attempt: int | None
    namespace: str | None
    server: str | None


def witness(line: str) -> None:
    if path := os.environ.get(WITNESS_VARIABLE):
        append(Path(path), line)


def append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")


@asynccontextmanager
async def lifespan(server: MCPServer[Any]) -> AsyncGenerator[dict[str, int]]:
    witness(f"entered {os.getpid()}")
    try:
        yield {"pid": os.getpid(), "thread": threading.get_ident()}
    finally:
        witness(f"left {os.getpid()}")


def build(*, celery: Celery | None = None, settings: Settings | None = None) -> TaskServer:  # noqa: C901, PLR0915
    """Make the server."""
    server = TaskServer("tools", task=True, celery=celery, settings=settings, lifespan=lifespan)

    @server.resource("text://greeting")
    def greeting() -> str:
        return "hello from a resource"

    @server.tool()
    async def add(a: int, b: int) -> int:
        return a + b

    @server.tool()
    def add_sync(a: int, b: int) -> int:
        return a + b

    @server.tool()
    def weather(city: str) -> Weather:
        return Weather(city=city, celsius=-3.5)

    @server.tool()
    def picture() -> Image:
        return Image(data=PIXEL, format="png")

    @server.tool()
    async def read_greeting(ctx: Context) -> str:
        return "".join(str(part.content) for part in await ctx.read_resource("text://greeting"))

    @server.tool()
    async def lifespan_state(ctx: Context) -> dict[str, int]:
        return {**ctx.request_context.lifespan_context, "worker": os.getpid()}

    @server.tool()
    async def whereabouts(ctx: Context, gate: str | None = None) -> Whereabouts:
        if gate is not None:
            await _pass(Path(gate))
        token = get_access_token()
        task = get_task_context()
        here = None if task is None else get_task_server()
        return Whereabouts(
            pid=os.getpid(),
            request_id=ctx.request_id,
            headers=None if ctx.headers is None else dict(ctx.headers),
            client_id=None if token is None else token.client_id,
            subject=None if token is None else token.subject,
            token=None if token is None else token.token,
            scope=get_task_scope(),
            session_id=get_task_session_id(),
            job_id=None if task is None else task.job_id,
            task_id=None if task is None else task.key.client_task_id,
            attempt=None if task is None else task.attempt,
            namespace=None if task is None else task.namespace,
            server=None if here is None else here.name,
        )

    @server.tool()
    async def remember(value: str) -> str:
        before = remembered.get()
        remembered.set(value)
        return before

    @server.tool()
    def remember_sync(value: str) -> str:
        before = remembered.get()
        remembered.set(value)
        return before

    @server.tool()
    def touch(path: str) -> int:
        append(Path(path), str(os.getpid()))
        return os.getpid()

    @server.tool()
    async def hold(gate: str) -> str:
        try:
            await _pass(Path(gate))
        except asyncio.CancelledError:
            append(Path(gate) / "cancelled", str(os.getpid()))
            raise
        return "passed"

    @server.tool()
    def hold_sync(gate: str) -> str:
        arrived, opened = Path(gate) / "arrived", Path(gate) / "opened"
        append(arrived, str(os.getpid()))
        deadline = time.monotonic() + HOLD_SECONDS
        while not opened.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return "passed"

    server.tool("hold_again", task=TaskConfig(acks_late=True))(hold)
    server.tool("hold_hinted", annotations=ToolAnnotations(idempotent_hint=True))(hold)
    server.tool("hold_reading", annotations=ToolAnnotations(read_only_hint=True))(hold)
    server.tool("touch_hourly", task=TaskConfig(rate_limit="1/h"))(touch)
    server.tool("hold_limited", task=LIMITED)(hold)
    server.tool("hold_sync_limited", task=LIMITED)(hold_sync)
    server.tool("hold_softly_limited", task=SOFTLY_LIMITED)(hold)

    @server.tool()
    async def hold_loop(gate: str) -> str:
        """Hold the event loop, as no tool should, until the gate opens."""
        return hold_sync(gate)

    @server.tool()
    async def report(count: int, ctx: Context) -> float:
        began = time.monotonic()
        for done in range(1, count + 1):
            await ctx.report_progress(done, count, "step")
        return time.monotonic() - began

    @server.tool()
    async def report_steadily(count: int, pause_ms: int, ctx: Context) -> float:
        began = time.monotonic()
        for done in range(1, count + 1):
            await ctx.report_progress(done, count, "step")
            await asyncio.sleep(pause_ms / 1000)
        return time.monotonic() - began

    @server.tool()
    def report_sync(count: int, ctx: Context) -> str:
        for done in range(1, count + 1):
            anyio.from_thread.run(ctx.report_progress, done, count, "step")
        return "reported"

    @server.tool()
    async def report_and_hold(gate: str, ctx: Context) -> str:
        for done in range(1, 4):
            await ctx.report_progress(done, 10, "step")
        await _pass(Path(gate))
        return "passed"

    @server.tool()
    async def say(text: str, ctx: Context) -> str:
        await ctx.info(text)  # pyright: ignore[reportDeprecated]
        return "said"

    @server.tool()
    async def crash(secret: str = "") -> str:
        raise RuntimeError(f"a bug in the tool {secret}".strip())

    @server.tool()
    def decline(reason: str) -> str:
        raise ToolError(reason)

    @server.tool()
    async def refuse(message: str, detail: str) -> str:
        raise MCPError(-32050, message, {"detail": detail})

    @server.tool()
    async def unserializable() -> CallToolResult:
        content: list[ContentBlock] = [TextContent(type="text", text="fine")]
        return CallToolResult(content=content, structured_content={"not json": object()})

    @server.tool()
    async def echo(text: str) -> str:
        return text

    @server.tool()
    async def answer_raw(text: str, count: int = 1, flag: bool = False) -> CallToolResult:
        content: list[ContentBlock] = [TextContent(type="text", text=text)] * count
        return CallToolResult(content=content, is_error=flag, _meta={"shop/receipt": 7})

    return server


async def _pass(gate: Path) -> None:
    """Say that the job has arrived, and wait until somebody opens the gate."""
    append(gate / "arrived", str(os.getpid()))
    async with asyncio.timeout(HOLD_SECONDS):
        while not (gate / "opened").exists():  # noqa: ASYNC110 - the opener is another process
            await asyncio.sleep(0.01)


server = build()
