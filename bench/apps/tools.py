"""The tools that every measured server has. No imports but the standard library's: FastMCP 4 has a venv of its own."""

from __future__ import annotations

import asyncio
import time


async def noop() -> str:
    """Do nothing."""
    return "done"


async def sleep(seconds: float) -> str:
    """Wait, as a tool does that calls another service."""
    await asyncio.sleep(seconds)
    return "done"


async def stamp(seconds: float) -> str:
    """Wait, and say when the body ended: nanoseconds since the epoch, of the machine's one clock."""
    await asyncio.sleep(seconds)
    return str(time.time_ns())


async def blob(size: int) -> str:
    """Return that many characters."""
    return "x" * size


TOOLS = (noop, sleep, stamp, blob)
