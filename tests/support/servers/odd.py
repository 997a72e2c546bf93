"""A server whose components hand over values and raise exceptions that JSON, Celery or asyncio do not expect."""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import decimal
import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.from_thread
from celery import Celery
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, SecretStr
from starlette.applications import Starlette

from mcp_celery import Settings, TaskServer
from mcp_celery.web import http_app
from tests.support.servers.hostile import add_hostile

HOLD_SECONDS: Final = 120.0
_left: list[asyncio.Task[None]] = []

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
    "group": lambda: BaseExceptionGroup("some", [ValueError(), Odd()]),
    "nested groups": lambda: BaseExceptionGroup("outer", [BaseExceptionGroup("inner", [ValueError(), SystemExit(3)])]),
    "group with a cancellation": lambda: BaseExceptionGroup("some", [asyncio.CancelledError(), KeyboardInterrupt()]),
    "group of cancellations": lambda: BaseExceptionGroup("some", [asyncio.CancelledError(), asyncio.CancelledError()]),
}
NAMES: Final[Mapping[str, str]] = {
    "group": "Odd",
    "nested groups": "SystemExit",
    "group with a cancellation": "KeyboardInterrupt",
    "group of cancellations": "CancelledError",
}
"""What the reason names, where it is not the kind itself."""
CHILD_EXITS: Final = ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "Odd")
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
    "as deep as JSON goes without a message around it": lambda: nested(254),
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


async def _created(child: Coroutine[Any, Any, None]) -> None:
    await asyncio.create_task(child)


async def _gathered(child: Coroutine[Any, Any, None]) -> None:
    await asyncio.gather(child, asyncio.sleep(0))


async def _grouped(child: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(child)


async def _grouped_by_anyio(child: Coroutine[Any, Any, None]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: child)


async def _in_an_empty_context(child: Coroutine[Any, Any, None]) -> None:
    await asyncio.create_task(_created(child), context=contextvars.Context())


async def leave(kind: str) -> None:
    await asyncio.sleep(0)
    raise EXITS[kind]()


STARTS: Final[Mapping[str, Callable[[Coroutine[Any, Any, None]], Coroutine[Any, Any, Any]]]] = {
    "create_task": _created,
    "gather": _gathered,
    "TaskGroup": _grouped,
    "task group of anyio": _grouped_by_anyio,
    "empty context": _in_an_empty_context,
}
"""How a component starts an asyncio task, and waits for it."""


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
    add_leaving_in_tasks(server)
    add_prompt_and_resource_with_tasks(server)
    add_values(server)
    add_hostile(server)
    return server


def add_leaving(server: TaskServer) -> None:
    @server.tool()
    def leaves(kind: str) -> str:
        raise EXITS[kind]()

    @server.tool()
    async def leaves_async(kind: str) -> str:
        await asyncio.sleep(0)
        raise EXITS[kind]()

    @server.prompt(task=True)
    def leaving_prompt() -> str:
        raise SystemExit(6)

    @server.resource("odd://leaving", task=True)
    def leaving_resource() -> str:
        raise SystemExit(7)


def add_leaving_in_tasks(server: TaskServer) -> None:
    @server.tool()
    async def leaves_in_a_task(kind: str, start: str) -> str:
        """asyncio lets ``SystemExit`` of a task through to whoever runs the event loop."""
        await STARTS[start](leave(kind))
        return "unreachable"

    @server.tool()
    def leaves_from_a_thread(kind: str) -> str:
        anyio.from_thread.run(leave, kind)
        return "unreachable"

    @server.tool()
    async def leaves_by_a_future(kind: str) -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        future.set_exception(EXITS[kind]())
        return await future

    @server.tool()
    async def cancels_itself() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return "unreachable"

    @server.tool()
    async def leaves_later(kind: str) -> str:
        """Its task ends when nobody waits for it any more."""
        _left.append(asyncio.create_task(leave(kind)))
        return "left"

    @server.tool()
    async def leaves_when_cancelled(folder: str) -> str:
        place = Path(folder)
        (place / "began").touch()
        try:
            await asyncio.sleep(HOLD_SECONDS)
        except asyncio.CancelledError as error:
            (place / "cancelled").touch()
            raise BaseExceptionGroup("both", [Odd(), error]) from None
        return "unreachable"

    @server.tool()
    async def stops_the_loop() -> str:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return "went on"


def add_prompt_and_resource_with_tasks(server: TaskServer) -> None:
    @server.prompt(task=True)
    async def leaving_prompt_in_a_task(start: str) -> str:
        await STARTS[start](leave("SystemExit"))
        return "unreachable"

    @server.resource("odd://leaving/{start}", task=True)
    async def leaving_resource_in_a_task(start: str) -> str:
        await STARTS[start](leave("SystemExit"))
        return "unreachable"


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


def hosted() -> Starlette:
    """The server's app, for an ASGI server that is not ours: ``uvicorn --factory``."""
    # The handler that the SDK has installed takes a second for a traceback.
    logging.basicConfig(level="INFO", handlers=[logging.StreamHandler()], force=True)
    return http_app(server)
