"""The arguments of a job's message. Everyone who can write to the broker can send others."""

from __future__ import annotations

from typing import Any

from mcp_celery.engine import JobRun, TaskRef


class MalformedJobError(ValueError):
    """The arguments of a job's message name no task. Everyone who can write to the broker can send such a message."""


def task_of(kwargs: Any) -> tuple[TaskRef, int]:
    """Where the task of a job's message is kept, and the attempt that the message is for.

    Args:
        kwargs: The message's arguments, whatever they are.

    Raises:
        MalformedJobError: They name no task.
    """
    run = run_of(kwargs)
    try:
        return TaskRef.of_key(run.key), run.attempt
    except ValueError as error:
        raise _malformed(error) from None


def run_of(kwargs: Any) -> JobRun:
    """Which run of which job a message is for.

    Args:
        kwargs: The message's arguments, whatever they are.

    Raises:
        MalformedJobError: They name none.
    """
    try:
        key = kwargs["key"]
        key.encode()  # a lone surrogate cannot be sent to the store
        return JobRun(key, int(kwargs.get("leg", 1)), int(kwargs["attempt"]))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise _malformed(error) from None


def _malformed(error: Exception) -> MalformedJobError:
    return MalformedJobError(f"the arguments of its message name no task ({type(error).__name__})")
