"""How the client's commands end: one exit status for each outcome, and one clear line on standard error."""

from __future__ import annotations

from enum import IntEnum
from typing import Final, cast

import httpx2
import mcp_types as types
from mcp.shared.exceptions import MCPError

from mcp_celery.client import (
    ClientClosedError,
    TaskCancelledError,
    TaskError,
    TaskGoneError,
    TaskState,
    TaskUnreachableError,
)
from mcp_celery.client.session import is_closed

EXPECTED: Final = (MCPError, TaskError, httpx2.HTTPError, OSError, RuntimeError, ValueError, ExceptionGroup)
"""What a client may raise where the other side is broken: errors of the protocol, the transport, or the content."""
_UNREACHED: Final = frozenset({types.CONNECTION_CLOSED, types.REQUEST_TIMEOUT})


class Outcome(IntEnum):
    """Exit statuses. Click uses ``USAGE``, too."""

    COMPLETED = 0
    FAILED = 1
    USAGE = 2
    CANCELLED = 3
    GONE = 4
    UNREACHABLE = 5
    GOES_ON = 6
    INTERRUPTED = 130
    TERMINATED = 143


class ClientError(Exception):
    """An error that ends a command without a result.

    Args:
        message: One line.
        outcome: The exit status that it stands for.
    """

    def __init__(self, message: str, outcome: Outcome) -> None:
        super().__init__(message)
        self.outcome = outcome


def outcome_of(state: TaskState) -> Outcome:
    """The outcome that a task's state stands for."""
    if state.status == "completed":
        return Outcome.FAILED if (state.result or {}).get("isError") is True else Outcome.COMPLETED
    return {"failed": Outcome.FAILED, "cancelled": Outcome.CANCELLED}.get(state.status, Outcome.GOES_ON)


def as_client_error(error: Exception) -> ClientError:
    """An error of the client's library as the commands print it."""
    first = first_of(error)
    match first:
        case ClientError():
            return first
        case TaskGoneError():
            outcome = Outcome.GONE
        case TaskCancelledError():
            outcome = Outcome.CANCELLED
        case TaskUnreachableError() | ClientClosedError() | httpx2.HTTPError() | OSError():
            outcome = Outcome.UNREACHABLE
        case MCPError() if first.code in _UNREACHED or is_closed(first):
            outcome = Outcome.UNREACHABLE
        case _:
            outcome = Outcome.FAILED
    return ClientError(" ".join(str(first).split()) or type(first).__name__, outcome)


def first_of(error: Exception) -> Exception:
    """The error that says what is wrong: the SDK's client raises groups, one within the other."""
    if isinstance(error, ExceptionGroup):
        group = cast("ExceptionGroup[Exception]", error)
        return first_of(group.exceptions[0])
    return error
