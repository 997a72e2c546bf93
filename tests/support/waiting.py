"""Waiting on conditions instead of sleeping."""

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

Found = TypeVar("Found")

PATIENCE_SECONDS = float(os.environ.get("TEST_PATIENCE_SECONDS", "120"))
"""After which a condition is taken never to come. Generous: a test that passes never waits so long, on a busy machine
either, where a command or a worker takes a minute to start. `make mutants` is less patient."""
_LOOK_EVERY_SECONDS = 0.005


async def eventually(
    condition: Callable[[], Awaitable[Found] | Found], *, what: str = "", seconds: float = PATIENCE_SECONDS
) -> Found:
    """Wait until a condition holds, while the event loop goes on.

    Args:
        condition: A function, sync or async; it holds when it returns something true.
        what: The condition in words, for the failure; its name by default.
        seconds: How long to wait.

    Returns:
        What the condition returned.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        found = cast(Found, await answer if inspect.isawaitable(answer) else answer)
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(_never(what, condition, seconds))
        await asyncio.sleep(_LOOK_EVERY_SECONDS)


def eventually_sync(condition: Callable[[], Found], *, what: str = "", seconds: float = PATIENCE_SECONDS) -> Found:
    """As :func:`eventually`, where there is no event loop."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(_never(what, condition, seconds))
        time.sleep(_LOOK_EVERY_SECONDS)
    return found


def _never(what: str, condition: Callable[..., object], seconds: float) -> str:
    return f"never within {seconds:g} s: {what or getattr(condition, '__qualname__', condition)}"


async def soon(answer: Awaitable[Found], *, seconds: float = PATIENCE_SECONDS) -> Found:
    """Await something that must not hang."""
    async with asyncio.timeout(seconds):
        return await answer
