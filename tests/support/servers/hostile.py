"""Exceptions and results whose own methods raise, as those of a library with a broken serializer do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ErrorData

from mcp_celery import TaskConfig, TaskServer


class FalsyCause(Exception):  # noqa: N818 - a name for tests
    def __bool__(self) -> bool:
        raise RuntimeError("it is neither true nor false")


class ExitingCause(BaseException):
    """``traceback`` asks it whether it is true."""

    def __bool__(self) -> bool:
        raise SystemExit(3)


class ExitingClass(Exception):  # noqa: N818 - a name for tests
    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - what isinstance() asks
        raise SystemExit(3)


class ExitingCode(MCPError):  # noqa: N818 - a name for tests
    @property
    def code(self) -> int:
        raise SystemExit(3)


class ExitingError(MCPError):
    @property
    def error(self) -> ErrorData:  # pyright: ignore[reportIncompatibleVariableOverride] - a mistake that people make
        raise SystemExit(3)

    @error.setter
    def error(self, value: ErrorData) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        pass


class ExitingRepr(Exception):  # noqa: N818 - a name for tests
    def __repr__(self) -> str:
        raise SystemExit(3)

    __str__ = __repr__


class ExitingDump(CallToolResult):
    def model_dump(self, **_options: Any) -> Any:
        raise SystemExit(3)


def _cycle() -> Exception:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def _caused_by(cause: BaseException) -> Exception:
    error = ValueError("caused")
    error.__cause__ = cause
    return error


RAISED: Final[Mapping[str, Callable[[], BaseException]]] = {
    "cycle of causes": _cycle,
    "cause without a truth": lambda: _caused_by(FalsyCause()),
    "cause that exits": lambda: _caused_by(ExitingCause()),
    "class that exits": ExitingClass,
    "code that exits": lambda: ExitingCode(-32001, "no"),
    "error that exits": lambda: ExitingError(-32001, "no"),
    "text that exits": ExitingRepr,
}


def add_hostile(server: TaskServer) -> None:
    @server.tool()
    async def raises(kind: str) -> str:
        """Not in a thread: anyio asks what a thread raised for its class, and then waits for it without end."""
        raise RAISED[kind]()

    @server.tool()
    def returns_what_exits() -> CallToolResult:
        return ExitingDump(content=[])

    @server.tool(task=TaskConfig(autoretry_for=(ExitingRepr,), max_retries=1))
    def retried() -> str:
        raise ExitingRepr
