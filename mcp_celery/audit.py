"""One line for each creation, end, retrieval and refused access of a task: its caller and its id, never its contents.

The logger is ``mcp_celery.tasks``. A message is ``key=value``, and every value is an attribute of the log record too:
loggers that write JSON need not parse it. Scopes come from tokens and are quoted as JSON, so that none can begin a line
or a field of its own. Of an anonymous task's id, which is the right to read it, the first characters are shown, and of
any id that was refused.

================== ======= ============================================================================================
``event``          level   when
================== ======= ============================================================================================
``task.created``   INFO    a task was made and its job published; with ``task_type`` and ``component``
``task.ended``     INFO    a task got its last status, from any process; with ``task_status``, ``component``,
                           ``attempt``, ``duration_ms`` (since its creation), and ``tool_error``: ``true`` where the
                           tool has failed, though the task is completed
``task.retrieved`` INFO    a caller was given the outcome, asked for or pushed; with ``task_status``. DEBUG: a caller
                           polled a task that has not ended
``task.refused``   INFO    a caller asked for a task that is not there or not its own; with ``reason``, and ``number``
                           where one request asked for several
``task.limited``   INFO    a request was refused because of a limit, before anything was created or read; with ``limit``
================== ======= ============================================================================================
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Final, Literal

from mcp_celery.logs import shown_task_id

LOGGER: Final = "mcp_celery.tasks"
logger = logging.getLogger(LOGGER)

FIELDS: Final = (
    "event",
    "task_scope",
    "task_id",
    "task_type",
    "component",
    "task_status",
    "attempt",
    "duration_ms",
    "tool_error",
    "reason",
    "number",
    "limit",
)
"""The attributes of a record."""
NUMBERS: Final = ("attempt", "duration_ms", "number")
"""Those whose text is a number, or ``-`` where it is not known."""
Reason = Literal["unknown", "issuer", "scopes", "malformed"]
_MAX_CHARS: Final = 200
"""Of a quoted value. Scopes and names are short; what is not must not fill the log."""


def created(scope: str | None, task_id: str, task_type: str, component: str) -> None:
    """A task was made.

    Args:
        scope: Whose it is.
        task_id: Its id, made by this package.
        task_type: Kind of its component.
        component: What the component is declared as: a template, where the client's URI would reveal contents.
    """
    if logger.isEnabledFor(logging.INFO):
        shown = _quoted(component)
        extra = {"task_type": task_type, "component": component[:_MAX_CHARS]}
        _log(logging.INFO, "task.created", scope, task_id, f"type={task_type} component={shown}", extra)


def ended(
    scope: str | None, task_id: str, status: str, *, component: str, attempt: int, age_ms: int | None, is_error: bool
) -> None:
    """A task got its last status.

    Args:
        scope: Whose it is.
        task_id: Its id, made by this package.
        status: The status.
        component: What the component is declared as.
        attempt: Which publication of the job counted, from 1.
        age_ms: How long after its creation it ended, in ms; None where that is not known.
        is_error: Whether its result says that the tool has failed.
    """
    if logger.isEnabledFor(logging.INFO):
        tool_error = "true" if is_error else "false"
        lasted = "-" if age_ms is None else str(age_ms)
        _log(
            logging.INFO,
            "task.ended",
            scope,
            task_id,
            f"status={status} component={_quoted(component)} attempt={attempt} duration_ms={lasted} "
            f"tool_error={tool_error}",
            {
                "task_status": status,
                "component": component[:_MAX_CHARS],
                "attempt": str(attempt),
                "duration_ms": lasted,
                "tool_error": tool_error,
            },
        )


def retrieved(scope: str | None, task_id: str, status: str, *, is_open: bool) -> None:
    """A caller was given a task: its outcome, or while it ``is_open`` its state."""
    level = logging.DEBUG if is_open else logging.INFO
    if logger.isEnabledFor(level):
        _log(level, "task.retrieved", scope, task_id, f"status={status}", {"task_status": status})


def refused(scope: str | None, task_id: str | None, reason: Reason, number: int = 1) -> None:
    """A caller asked for a task that it may not have.

    Args:
        scope: Who asked.
        task_id: What for; None for what cannot be a task id, which is not repeated. Of several tasks that a request
            names, the first.
        reason: ``unknown``: there is none, it has expired, or it is another caller's; ``issuer``: it belongs to the
            same subject of another issuer; ``scopes``: the token lacks scopes that its component needs; ``malformed``:
            it cannot be a task id.
        number: How many tasks the request names that are refused for this reason.
    """
    if logger.isEnabledFor(logging.INFO):
        # For every caller: the id may be an anonymous task's.
        shown = None if task_id is None else shown_task_id(None, task_id)
        details, extra = f"reason={reason}", {"reason": reason}
        if number > 1:
            details, extra = f"{details} number={number}", {**extra, "number": str(number)}
        _log(logging.INFO, "task.refused", scope, shown, details, extra)


def limited(scope: str | None, limit: str) -> None:
    """A request was refused because of a limit.

    Args:
        scope: Who asked.
        limit: Which one, as ``LimitExceededError.limit`` names it.
    """
    if logger.isEnabledFor(logging.INFO):
        _log(logging.INFO, "task.limited", scope, None, f"limit={limit}", {"limit": limit})


def _log(
    level: int, event: str, scope: str | None, task_id: str | None, details: str, extra: Mapping[str, str]
) -> None:
    shown = None if task_id is None else shown_task_id(scope, task_id)
    fields = {"event": event, "task_scope": None if scope is None else scope[:_MAX_CHARS], "task_id": shown, **extra}
    logger.log(level, "event=%s scope=%s task=%s %s", event, _quoted(scope), shown or "-", details, extra=fields)


def _quoted(text: str | None) -> str:
    """As a JSON string in ASCII, ``null`` for an anonymous caller's scope."""
    return json.dumps(text if text is None or len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + "…")
