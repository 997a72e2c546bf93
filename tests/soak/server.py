"""The server that is soaked, in two versions. Its tools note what they do."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from typing import Any, Final, Literal, cast

from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

from mcp_celery import TaskConfig, TaskServer
from tests.soak.names import THEIR_JOB, THEIR_QUEUE, THEIR_TTL_SECONDS
from tests.soak.notes import note

Version = Literal["old", "new"]
VERSION_VARIABLE: Final = "SOAK_VERSION"
EXPOSES_VARIABLE: Final = "SOAK_EXPOSES"
"""Set where the server exposes the job of another app."""
REFUSED: Final = -32050
BIG_BYTES: Final = (64_000, 768_000)
BIG_TTL_MS: Final = 400_000
"""So that the big results of a long run are not all in the store at its end."""


class Fatal(BaseException):
    """What a library may raise besides ``Exception``."""


EXITS: Final[tuple[type[BaseException], ...]] = (SystemExit, KeyboardInterrupt, Fatal)


def exit_of(number: int) -> type[BaseException]:
    """What a call of that number raises."""
    return EXITS[number % len(EXITS)]


def big_text(number: int) -> str:
    """The big result of a call of that number."""
    chance = random.Random(number)
    return chance.randbytes(chance.randint(*BIG_BYTES) // 2).hex()


def digest(text: str) -> str:
    """What is kept of a big result."""
    return hashlib.sha256(text.encode()).hexdigest()


class Work(BaseModel):
    """The arguments of the exposed job."""

    number: int
    seconds: float


def build(version: Version) -> TaskServer:
    """Make the server of one version."""
    server = TaskServer("soak", version=version, task=True, log_level="WARNING")

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

    @server.tool(task=TaskConfig(ttl=BIG_TTL_MS))
    async def big(number: int, seconds: float) -> str:
        """Has a big result."""
        note("begun", number)
        await asyncio.sleep(seconds)
        note("ended", number)
        return big_text(number)

    _add_exits(server)
    _add_changed(server, version)
    if os.environ.get(EXPOSES_VARIABLE):
        config = TaskConfig(queue=THEIR_QUEUE, ttl=round(THEIR_TTL_SECONDS * 1000))
        server.expose(THEIR_JOB, name="theirs", arguments=Work, description="A job of somebody else.", task=config)
    return server


def _add_exits(server: TaskServer) -> None:
    @server.tool()
    async def exits(number: int, seconds: float) -> int:
        """Raises what would end its process."""
        note("begun", number)
        await asyncio.sleep(seconds)
        raise exit_of(number)

    @server.tool()
    def exits_sync(number: int, seconds: float) -> int:
        """The same in a thread."""
        note("begun", number)
        time.sleep(seconds)
        raise exit_of(number)

    @server.tool()
    async def exits_in_the_server(number: int, seconds: float) -> int:
        """The same, called by clients that know no tasks, in the server's own process."""
        note("begun", number)
        await asyncio.sleep(seconds)
        raise exit_of(number)


def _add_changed(server: TaskServer, version: Version) -> None:
    async def changed(number: int, seconds: float, **more: Any) -> dict[str, Any]:
        note("begun", number)
        await asyncio.sleep(seconds)
        note("ended", number)
        return {"by": version, "number": number, **more}

    if version == "old":

        @server.tool(name="changed")
        async def old(number: int, seconds: float) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
            """Says which version runs."""
            return await changed(number, seconds)

    else:

        @server.tool(name="changed")
        async def new(number: int, seconds: float, more: int = 0) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
            """Says which version runs, and what it got."""
            return await changed(number, seconds, more=more)


def changed_result(version: str | None, number: int) -> dict[str, Any]:
    """What ``changed`` returns to a call with ``more=number`` that a server of that version took."""
    return {"by": version, "number": number, **({} if version == "old" else {"more": number})}


server = build(cast(Version, os.environ.get(VERSION_VARIABLE, "old")))
