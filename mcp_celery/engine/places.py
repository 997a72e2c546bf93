"""Places: how many jobs of a component, of a caller or of a tenant run at a time, over all workers.

A job that has no place when it would start takes no slot. Its task *waits*: the worker drops the message, the next
attempt counts, and the job is due when a place is free. The step that ends a job, has it tried again or ends it with
questions gives its places to the oldest tasks that wait, and sends a hint, at which the process that reaps publishes
their jobs.

A task takes the places of its limits in one order, which is the same for all tasks (:func:`places_of`): those of a
caller come before those that all callers share, so that a caller with many tasks holds no shared place while it waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mcp_celery.common.jsonable import json_text
from mcp_celery.config import TaskConfig
from mcp_celery.engine.record import PlaceLimit
from mcp_celery.engine.submission import Submission
from mcp_celery.logs import get_logger

logger = get_logger(__name__)

WAITING_FOR_PLACE: Final = "Waiting for a free place (%d ahead)"
"""The status message of a task whose job may not start yet; with how many tasks are before it."""


class NoPlaceError(Exception):
    """A job was not let start: all places of a limit are taken, and its task waits for one.

    Args:
        ahead: How many tasks are before it.
    """

    def __init__(self, ahead: int) -> None:
        super().__init__(ahead)
        self.ahead = ahead


def places_of(submission: Submission, *, max_per_scope: int | None) -> Iterator[PlaceLimit]:
    """The limits on running jobs that a new task is subject to, in the order in which tasks take their places.

    Args:
        submission: The request. Workers of this package do not run exposed jobs, so no limit concerns them.
        max_per_scope: How many jobs of one caller may run at a time, None for any number.
    """
    if submission.plan is not None:
        return
    config, requestor = submission.config, submission.caller.requestor
    component = [submission.task_type, submission.declared_as or submission.component]
    if requestor is not None and config.max_running_per_caller is not None:
        yield PlaceLimit("caller", json_text([requestor, *component]), config.max_running_per_caller)
    if requestor is not None and max_per_scope is not None:
        yield PlaceLimit("scope", requestor, max_per_scope)
    if config.max_running is not None:
        key = () if config.max_running_key is None else (_value(submission, config),)
        yield PlaceLimit("component", json_text([*component, *key]), config.max_running)


def _value(submission: Submission, config: TaskConfig) -> str:
    """By what the jobs of a component are counted: what its arguments are for ``max_running_key``, as text."""
    params, key = submission.snapshot.params, config.max_running_key
    arguments: Mapping[str, Any] = params.get("arguments") or {}
    if submission.task_type == "resource":
        arguments = {"uri": submission.component}
    if isinstance(key, str):
        return repr(arguments.get(key))
    try:
        return repr(key(arguments)) if key is not None else ""
    except Exception:
        # The task counts with those whose arguments give no key either.
        logger.exception("TaskConfig(max_running_key=…) of %r failed", submission.declared_as or submission.component)
        return ""
