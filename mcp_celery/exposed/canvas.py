"""Chains, groups and chords as one task: its parts get Celery ids of the task's, so that they can be found again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import kombu
from celery import Celery
from celery.canvas import Signature, maybe_signature
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError

from mcp_celery.errors import InvalidRequestError, QueueUnavailableError
from mcp_celery.exposed.canvas_app import CanvasApp
from mcp_celery.redaction import HIDDEN

logger = logging.getLogger(__name__)

MAX_PARTS: Final = 1_000
"""The most jobs that one task may have. Each is read at each look."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """The signature that a user's function made for a request: a copy, since Celery writes ids into it.

    Attributes:
        signature: The whole.
        parts: Its jobs; first those whose results are the result.
        gathered: How many those are where they make a list; 0 where there is one.
    """

    signature: Any
    parts: Sequence[Any]
    gathered: int

    @property
    def job_name(self) -> str:
        """Celery name of the job that gives the result, or the first part of it."""
        return str(self.parts[0].task)


def canvas_of(made: object, tool_name: str, app: Celery | None = None) -> Canvas:
    """Take a signature apart.

    Args:
        made: What the user's function returned.
        tool_name: For errors.
        app: Whose the copy is to be, None for that of the signature.

    Raises:
        InvalidRequestError: It is no signature, has no job or too many, or its result would be a list of lists.
    """
    if not isinstance(made, Signature):
        raise InvalidRequestError(f"Tool {tool_name!r} made no Celery signature, but a {type(made).__name__}")
    whole = _copy(made, app)
    every = _jobs(whole)
    if not 1 <= len(every) <= MAX_PARTS:
        raise InvalidRequestError(f"Tool {tool_name!r} made {len(every)} jobs of these arguments, not 1…{MAX_PARTS}")
    last, is_list = _last(whole, tool_name)
    of_result = {id(one) for one in last}
    others = [one for one in every if id(one) not in of_result]
    return Canvas(whole, [*last, *others], len(last) if is_list else 0)


def _copy(signature: Any, app: Celery | None) -> Any:
    """A signature of which nothing is shared with the one that was given."""
    copied = signature.clone()
    kind = copied.get("subtask_type")
    if kind in ("chain", "group", "chord"):
        copied = cast(Any, maybe_signature(copied, app=app))
        copied.tasks = [_copy(one, app) for one in _signatures(copied.tasks, copied)]
        if kind == "chord":
            copied.body = _copy(copied.body, app)
        return copied
    # A job's signature holds on to its task, and that to its app.
    return copied if app is None else Signature.from_dict(dict(copied), app=app)


def _signatures(found: Any, owner: Any) -> list[Any]:
    tasks = found.tasks if getattr(found, "subtask_type", None) == "group" else found
    return [one if isinstance(one, Signature) else Signature.from_dict(one, app=owner.app) for one in tasks]


def _jobs(signature: Any) -> list[Any]:
    """Every job of a signature."""
    kind = signature.get("subtask_type")
    if kind in ("chain", "group"):
        return [job for one in signature.tasks for job in _jobs(one)]
    if kind == "chord":
        return [*(job for one in signature.tasks for job in _jobs(one)), *_jobs(signature.body)]
    return [signature]


def _last(signature: Any, tool_name: str) -> tuple[list[Any], bool]:
    """The jobs whose results are the result, and whether they make a list."""
    kind = signature.get("subtask_type")
    if kind == "chain":
        return _last(signature.tasks[-1], tool_name)
    if kind == "chord":
        return _last(signature.body, tool_name)
    if kind != "group":
        return [signature], False
    found: list[Any] = []
    for one in signature.tasks:
        last, is_list = _last(one, tool_name)
        if is_list:
            raise InvalidRequestError(f"Tool {tool_name!r} made a group within its last group")
        found += last
    return found, True


def publish_canvas(
    app: CanvasApp, canvas: Canvas, job_ids: Sequence[str], producer: kombu.Producer, *, timeout_seconds: float
) -> None:
    """Publish a canvas under Celery ids that this package chooses; returns when the broker has what can begin now.

    Some of its parts are published later, from the workers. Every part stores its result, whatever its task declares.

    Args:
        app: Publishes it.
        canvas: The canvas. It is not changed, so that it can be published again.
        job_ids: The ids of its parts.
        producer: On one of this package's connections.
        timeout_seconds: How long one message may take.

    Raises:
        QueueUnavailableError: The broker took a part of it, or may have. What it raises before is the transport's.
    """
    fresh = canvas_of(canvas.signature, canvas.job_name, app)
    for job, job_id in zip(fresh.parts, job_ids, strict=True):
        job.set(task_id=job_id, argsrepr=HIDDEN, kwargsrepr=HIDDEN, ignore_result=False)
    connection = cast(kombu.Connection, producer.connection)
    with app.publishing(producer, timeout_seconds) as publishing:
        try:
            fresh.signature.apply_async()
        except (KombuError, CeleryError, OSError, *connection.recoverable_connection_errors) as error:
            if publishing.messages <= 1 and not isinstance(error, CeleryError):
                raise
            logger.warning("could not publish jobs of a task: %s", type(error).__name__)
            raise QueueUnavailableError from error
