"""Reads from a message which task its job belongs to, in the worker's parent process, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mcp_celery.engine import TaskRef
from mcp_celery.worker.celery.bootsteps import retries_of
from mcp_celery.worker.job import WorkerRuntime
from mcp_celery.worker.job_arguments import task_of


@dataclass(frozen=True, slots=True)
class AddressedJob:
    """The job in a message.

    Attributes:
        ref: Its task.
        key: The compound key of the task.
        attempt: The attempt that it was published for.
        retries: Celery's count of its retries.
    """

    ref: TaskRef
    key: str
    attempt: int
    retries: int


def addressed(runtime: WorkerRuntime, message: Any) -> AddressedJob | None:
    """Read the job in a message. What is wrong with a message is not logged here: its usual way says it.

    Args:
        runtime: Of the server whose job it is.
        message: kombu's message.

    Returns:
        None where the message cannot be read, or no process with the encryption keys published it.
    """
    try:
        _args, kwargs, _embed = message.payload
        ref, attempt = task_of(kwargs)
        retries = retries_of(message.headers)
        runtime.require_genuine(message.headers, kwargs, retries)
    except Exception:  # noqa: BLE001 - whatever kombu raises for a body that it cannot read
        return None
    return AddressedJob(ref, kwargs["key"], attempt, retries)
