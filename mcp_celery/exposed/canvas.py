"""Chains, groups and chords as one task: its parts get Celery ids of the task's, so that they can be found again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from celery import Celery
from celery.backends.asynchronous import AsyncBackendMixin
from celery.canvas import Signature
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError

from mcp_celery.errors import InvalidRequestError, QueueUnavailableError
from mcp_celery.shown import HIDDEN

MAX_PARTS: Final = 1_000
"""The most jobs that one task may have. Each is read at each look."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """What somebody's function has made of a request: a copy, since Celery writes ids into it.

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


def canvas_of(made: object, tool_name: str) -> Canvas:
    """Take a signature apart.

    Args:
        made: What somebody's function returned.
        tool_name: For errors.

    Raises:
        InvalidRequestError: It is no signature, has no job or too many, or its result would be a list of lists.
    """
    if not isinstance(made, Signature):
        raise InvalidRequestError(f"Tool {tool_name!r} made no Celery signature, but a {type(made).__name__}")
    whole = _copy(made)
    every = _jobs(whole)
    if not 1 <= len(every) <= MAX_PARTS:
        raise InvalidRequestError(f"Tool {tool_name!r} made {len(every)} jobs of these arguments, not 1…{MAX_PARTS}")
    last, is_list = _last(whole, tool_name)
    of_result = {id(one) for one in last}
    others = [one for one in every if id(one) not in of_result]
    return Canvas(whole, [*last, *others], len(last) if is_list else 0)


def _copy(signature: Any) -> Any:
    """A signature of which nothing is shared with the one that was given."""
    copied = signature.clone()
    kind = copied.get("subtask_type")
    if kind in ("chain", "group"):
        copied.tasks = [_copy(one) for one in _signatures(copied.tasks, copied)]
    elif kind == "chord":
        copied.tasks = [_copy(one) for one in _signatures(copied.tasks, copied)]
        copied.body = _copy(copied.body)
    return copied


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


def publish_canvas(app: Celery, canvas: Canvas, job_ids: Sequence[str]) -> None:
    """Publish a canvas under Celery ids of ours; returns when the broker has what can begin now.

    Celery publishes it with a producer of the app's own, and some of its parts later, from the workers.

    Raises:
        QueueUnavailableError: The broker did not take it. A part may have been published.
    """
    for job, job_id in zip(canvas.parts, job_ids, strict=True):
        job.set(task_id=job_id, argsrepr=HIDDEN, kwargsrepr=HIDDEN)
    try:
        canvas.signature.apply_async()
    except (KombuError, CeleryError, OSError) as error:
        raise QueueUnavailableError from error
    finally:
        _unsubscribe(app, job_ids)


def _unsubscribe(app: Celery, job_ids: Sequence[str]) -> None:
    """Let this thread's backend not wait for the results, which Celery has it do for every job that it publishes."""
    backend: Any = app.backend
    if isinstance(backend, AsyncBackendMixin):
        for job_id in job_ids:
            backend.remove_pending_result(app.AsyncResult(job_id))
