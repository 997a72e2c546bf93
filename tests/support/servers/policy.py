"""A server whose tools declare Celery's options. What a body does is written to files, which every pool can."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import anyio.to_thread
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from mcp_celery import Settings, TaskConfig, TaskServer

PERSISTENT = TaskConfig(autoretry_for=(ConnectionError,), max_retries=3, retry_jitter=False)
BRIEF = TaskConfig(expires=0.3)
HOLD_SECONDS = 300.0


def note(path: str, line: str) -> int:
    """Append a line to a file; gives how many there are."""
    with Path(path).open("a") as file:
        file.write(line + "\n")
    return len(Path(path).read_text().splitlines())


def wait_for(path: str) -> None:
    """Wait until a file is there; '' is."""
    deadline = time.monotonic() + HOLD_SECONDS
    while path and not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.01)


def build(celery: Celery | None = None, settings: Settings | None = None) -> TaskServer:  # noqa: C901
    server = TaskServer("policy", celery=celery, settings=settings, log_level="WARNING")

    @server.tool(task=PERSISTENT)
    async def comes_back(path: str, failures: int, until: str = "") -> str:
        tries = note(path, "tried")
        if tries <= failures:
            raise ConnectionError("not yet")
        await anyio.to_thread.run_sync(wait_for, until)
        return f"try {tries}"

    @server.tool(task=PERSISTENT)
    def comes_back_sync(path: str, failures: int, until: str = "") -> str:
        tries = note(path, "tried")
        if tries <= failures:
            raise ConnectionError("not yet")
        wait_for(until)
        return f"try {tries}"

    @server.tool(task=PERSISTENT)
    async def fails_later(path: str, until: str) -> str:
        note(path, "tried")
        await anyio.to_thread.run_sync(wait_for, until)
        raise ConnectionError("not yet")

    @server.tool(task=PERSISTENT)
    async def fails_otherwise(path: str) -> str:
        note(path, "tried")
        raise ValueError("not worth another try")

    @server.tool(task=TaskConfig(autoretry_for=(ConnectionError,), max_retries=2, retry_backoff=1, retry_jitter=False))
    async def waits_between(path: str) -> str:
        if note(path, str(time.monotonic())) == 1:
            raise ConnectionError("not yet")
        return "came back"

    @server.tool(task=TaskConfig(rate_limit="2/s"))
    async def limited(path: str) -> str:
        note(path, str(time.monotonic()))
        return "done"

    @server.tool(task=BRIEF)
    async def brief(path: str) -> str:
        note(path, "ran")
        return "done"

    @server.tool(task=TaskConfig(soft_time_limit=0.5))
    async def softly(path: str) -> str:
        try:
            await asyncio.sleep(60)
        except (SoftTimeLimitExceeded, asyncio.CancelledError):
            note(path, "interrupted")
            raise
        return "never"

    @server.tool(task=TaskConfig(time_limit=1))
    async def hard() -> str:
        await asyncio.sleep(60)
        return "never"

    @server.tool(task=TaskConfig(priority=9, queue="elsewhere"))
    async def elsewhere() -> str:
        return "from elsewhere"

    @server.tool(task=True)
    async def annotated() -> str:
        await asyncio.sleep(60)
        return "never"

    @server.tool(task=True)
    async def cancelled(path: str) -> str:
        note(path, "began")
        try:
            await asyncio.sleep(60)
        finally:
            note(path, "cleaned up")
        return "never"

    return server


def served() -> TaskServer:
    """The server of a worker, on the app that the environment describes."""
    return build()


server: Any = served()
