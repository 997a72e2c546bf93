"""A server whose tools are made to be cancelled: they hold, clean up, use their context, or do not listen."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import anyio.from_thread
from celery import Celery
from mcp.server.mcpserver import Context
from pydantic import BaseModel

from mcp_celery import Settings, TaskConfig, TaskServer
from tests.support.servers.policy import note
from tests.support.servers.tools import append

HOLD_SECONDS: Final = 300.0
FAILURES: Final = 2
RETRIED: Final = TaskConfig(
    autoretry_for=(ConnectionError,), max_retries=3, retry_backoff=True, retry_backoff_max=5, retry_jitter=False
)
USES: Final = ("progress", "info", "resource", "elicit")


class Answer(BaseModel):
    yes: bool


def arrive(gate: Path) -> None:
    append(gate / "arrived", str(os.getpid()))


def is_open(gate: Path) -> bool:
    return (gate / "opened").exists()


async def use(ctx: Context, what: str) -> None:
    """One use of the context, of which ``elicit`` fails also while the task is wanted."""
    uses: dict[str, Callable[[], Awaitable[Any]]] = {
        "progress": lambda: ctx.report_progress(1, 2, "step"),
        "info": lambda: ctx.info("step"),  # pyright: ignore[reportDeprecated]
        "resource": lambda: ctx.read_resource("text://greeting"),
        "elicit": lambda: ctx.elicit("Sure?", Answer),
    }
    try:
        await uses[what]()
    except Exception:
        if what != "elicit":
            raise


def build(*, celery: Celery | None = None, settings: Settings | None = None) -> TaskServer:  # noqa: C901, PLR0915
    server = TaskServer("cancelling", task=True, celery=celery, settings=settings)

    @server.resource("text://greeting")
    def greeting() -> str:
        return "hello"

    @server.tool()
    async def add(a: int, b: int) -> int:
        return a + b

    @server.tool()
    async def touch(path: str) -> str:
        append(Path(path), "ran")
        return "touched"

    @server.tool()
    async def hold(gate: str) -> str:
        folder = Path(gate)
        arrive(folder)
        try:
            async with asyncio.timeout(HOLD_SECONDS):
                while not is_open(folder):  # noqa: ASYNC110 - the opener is another process
                    await asyncio.sleep(0.01)
        finally:
            await asyncio.sleep(0.05)
            append(folder / "cleaned", "up")
        return "passed"

    @server.tool()
    def hold_sync(gate: str) -> str:
        folder, deadline = Path(gate), time.monotonic() + HOLD_SECONDS
        arrive(folder)
        try:
            while not is_open(folder) and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            append(folder / "cleaned", "up")
        return "passed"

    @server.tool()
    async def stubborn(gate: str) -> str:
        folder, deadline = Path(gate), time.monotonic() + HOLD_SECONDS
        arrive(folder)
        while not is_open(folder) and time.monotonic() < deadline:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                append(folder / "ignored", "it")
        append(folder / "cleaned", "up")
        return "I do as I like"

    @server.tool()
    async def use_context(gate: str, what: str, ctx: Context) -> str:
        folder, deadline = Path(gate), time.monotonic() + HOLD_SECONDS
        arrive(folder)
        try:
            while not is_open(folder) and time.monotonic() < deadline:
                await use(ctx, what)
                await asyncio.to_thread(time.sleep, 0.01)
        except BaseException as error:
            append(folder / "cleaned", type(error).__name__)
            raise
        return "passed"

    @server.tool()
    def use_context_sync(gate: str, what: str, ctx: Context) -> str:
        folder, deadline = Path(gate), time.monotonic() + HOLD_SECONDS
        arrive(folder)
        try:
            while not is_open(folder) and time.monotonic() < deadline:
                anyio.from_thread.run(use, ctx, what)
                time.sleep(0.01)
        except BaseException as error:
            append(folder / "cleaned", type(error).__name__)
            raise
        return "passed"

    @server.tool(task=RETRIED)
    async def fails_at_first(path: str) -> str:
        if note(path, "tried") <= FAILURES:
            raise ConnectionError("not yet")
        return "at last"

    return server


server = build()
