"""The server that is soaked. Its tools note what they do in a file, which no crash of a process loses."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

from mcp.shared.exceptions import MCPError

from mcp_celery import TaskConfig, TaskServer

NOTES_VARIABLE: Final = "SOAK_NOTES"
REFUSED: Final = -32050

server = TaskServer("soak", task=True, log_level="WARNING")


def note(what: str, number: int) -> None:
    """Append a line, in one write, so that lines of many processes do not mix."""
    file = os.open(os.environ[NOTES_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{what} {number}\n".encode())
    finally:
        os.close(file)


@server.tool()
async def once(number: int, seconds: float) -> int:
    """May have effects: must never run twice."""
    note("begun", number)
    await asyncio.sleep(seconds)
    note("ended", number)
    return number


@server.tool()
def once_sync(number: int, seconds: float) -> int:
    """The same, and keeps its thread busy."""
    note("begun", number)
    time.sleep(seconds)
    note("ended", number)
    return number


@server.tool(task=TaskConfig(acks_late=True))
async def again(number: int, seconds: float) -> int:
    """May be repeated."""
    note("begun", number)
    await asyncio.sleep(seconds)
    note("ended", number)
    return number


@server.tool(task=TaskConfig(foreground="worker"))
async def in_the_foreground(number: int, seconds: float) -> int:
    """Called by clients that know no tasks, whose request waits for it. Must never run twice."""
    note("begun", number)
    await asyncio.sleep(seconds)
    note("ended", number)
    return number


@server.tool(task=TaskConfig(autoretry_for=(ConnectionError,), max_retries=2, retry_jitter=False))
async def flaky(number: int, seconds: float) -> int:
    """Fails at first, and is tried again."""
    note("tried", number)
    await asyncio.sleep(seconds)
    if number % 2:
        raise ConnectionError("not yet")
    return number


@server.tool()
async def refuse(number: int, seconds: float) -> int:
    """Ends in a JSON-RPC error."""
    note("begun", number)
    await asyncio.sleep(seconds)
    raise MCPError(REFUSED, f"no {number}")
