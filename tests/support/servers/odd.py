"""A server whose components hand over values and raise exceptions that JSON, Celery or asyncio do not expect."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import os
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from celery import Celery
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, SecretStr

from mcp_celery import Settings, TaskServer

LIFESPAN_VARIABLE: Final = "TEST_LIFESPAN_EXITS"
"""Names a file: while it exists, entering the lifespan raises ``SystemExit``."""


class Odd(BaseException):
    """Like a test framework's outcome, or trio's ``Cancelled``."""


class Unspeakable(Exception):  # noqa: N818 - a name for tests
    def __str__(self) -> str:
        raise RuntimeError("it has no text")


class Order(BaseModel):
    number: int = 7
    card: SecretStr = SecretStr("4111-1111")


EXITS: Final[Mapping[str, Callable[[], BaseException]]] = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "Odd": Odd,
    "BaseExceptionGroup": lambda: BaseExceptionGroup("some", [Odd()]),
}
DATA: Final[Mapping[str, Callable[[], Any]]] = {
    "date": lambda: {"when": datetime.datetime(2025, 1, 1)},  # noqa: DTZ001 - as people write it
    "decimal": lambda: {"sum": decimal.Decimal("1.5")},
    "bytes": lambda: {"raw": b"x"},
    "set": lambda: {1},
    "model": Order,
    "tags": lambda: {"__type__": "decimal", "__value__": "1.0"},
    "keys": lambda: {1: "one"},
}
"""Data of an error that the SDK's foreground sends."""
UNSENDABLE: Final[Mapping[str, Callable[[], Any]]] = {
    "object": object,
    "binary": lambda: b"\xff",
    "deep": lambda: nested(2_000),
    "long number": lambda: 10**5_000,
}
"""Data that no JSON has. The foreground breaks its exchange over it."""
PROGRESS: Final[Mapping[str, Callable[[], Any]]] = {
    "decimal": lambda: decimal.Decimal("1.5"),
    "none": lambda: None,
    "text": lambda: "50%",
    "huge": lambda: 10**400,
    "nan": lambda: float("nan"),
    "infinite": lambda: float("inf"),
    "object": object,
}


def nested(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = [value]
    return value


def odd_lifespan(path: str | None) -> Callable[[MCPServer[Any]], Any]:
    @asynccontextmanager
    async def lifespan(_: MCPServer[Any]) -> AsyncGenerator[None]:
        if path is not None and os.path.exists(path):  # noqa: ASYNC240, PTH110 - a look at one name
            sys.exit(4)
        yield

    return lifespan


def build(celery: Celery | None = None, settings: Settings | None = None) -> TaskServer:
    lifespan = odd_lifespan(os.environ.get(LIFESPAN_VARIABLE))
    server = TaskServer("Odd", celery=celery, settings=settings, task=True, lifespan=lifespan)
    add_leaving(server)
    add_values(server)
    return server


def add_leaving(server: TaskServer) -> None:
    @server.tool()
    def leaves(kind: str) -> str:
        raise EXITS[kind]()

    @server.tool()
    async def leaves_async(kind: str) -> str:
        await asyncio.sleep(0)
        raise EXITS[kind]()

    @server.tool()
    async def leaves_in_a_task() -> str:
        """asyncio lets ``SystemExit`` of a task through to whoever runs the event loop."""

        async def leave() -> None:
            sys.exit(5)

        await asyncio.create_task(leave())
        return "unreachable"

    @server.tool()
    async def stops_the_loop() -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return "went on"

    @server.prompt(task=True)
    def leaving_prompt() -> str:
        raise SystemExit(6)

    @server.resource("odd://leaving", task=True)
    def leaving_resource() -> str:
        raise SystemExit(7)


def add_values(server: TaskServer) -> None:
    @server.tool()
    def echo(value: Any) -> dict[str, Any]:
        return {"value": value}

    @server.tool()
    def fails(kind: str) -> str:
        raise MCPError(-32001, "no", {**DATA, **UNSENDABLE}[kind]())

    @server.tool()
    def fails_at_length(text: int, data: int) -> str:
        raise MCPError(-32001, "m" * text, "d" * data)

    @server.tool()
    def speechless() -> str:
        raise Unspeakable

    @server.tool()
    async def reports(kind: str, ctx: Context) -> str:
        value: Any = PROGRESS[kind]()
        await ctx.report_progress(value, value, f"step {kind}")
        return "done"

    @server.tool()
    async def logs(kind: str, ctx: Context) -> str:
        await ctx.info({**DATA, **UNSENDABLE}[kind]())  # pyright: ignore[reportDeprecated]
        return "done"

    @server.tool()
    def sized(size: int) -> str:
        return "x" * size


server = build()
