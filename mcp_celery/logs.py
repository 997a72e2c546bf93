"""Keeps log lines safe to read: escapes characters that a terminal would obey, and shortens ids of anonymous tasks.

The id of an anonymous task is the right to read it, so a reader of logs must not get it. Its first characters remain,
and show an operator which task a line is about. Every log line of this package that names a task by its id uses
:func:`shown_task_id`. :class:`ShortIds` shortens the ids in compound keys and Celery ids, in our lines and in Celery's.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, cast

from mcp_celery.common.escaping import escaped
from mcp_celery.context import get_task_context

SHOWN_CHARS: Final = 8
"""How much of an anonymous task's id a log line shows: 48 of its 256 bits."""
_ANONYMOUS: Final = re.compile(rf"(?<![A-Za-z0-9])(?<!auth:)(anon:[A-Za-z0-9_-]{{{SHOWN_CHARS}}})[A-Za-z0-9_-]+")
_NEXT_LINE: Final = "\n    "
_CELERY_LOGGERS: Final = (
    "celery.app.trace",
    "celery.pool",
    "celery.worker.consumer.consumer",
    "celery.worker.control",
    "celery.worker.request",
    "celery.worker.strategy",
    # Our asyncio pool, which is usable without the rest of this package.
    "mcp_celery.asyncio_pool.dispatcher",
    "mcp_celery.asyncio_pool.job",
    "mcp_celery.asyncio_pool.stalls",
)
"""The loggers of Celery's worker, and of its pool, that name jobs."""


def shown_task_id(scope: str | None, task_id: str) -> str:
    """A task's id as a log line shows it.

    >>> shown_task_id(None, "q3Xw81abcdefghij"), shown_task_id("client-a", "q3Xw81abcdefghij")
    ('q3Xw81ab…', 'q3Xw81abcdefghij')

    Args:
        scope: Whose the task is, None for an anonymous caller.
        task_id: The id that the client holds.

    Returns:
        The id; of an anonymous task its first characters.
    """
    if scope is not None or len(task_id) <= SHOWN_CHARS:
        return task_id
    return task_id[:SHOWN_CHARS] + "…"


def with_short_ids(text: str) -> str:
    """Shorten the ids of anonymous tasks in compound keys and Celery ids.

    >>> with_short_ids("job anon:q3Xw81abcdefghij:tool:my_tool!2 of auth:client-a:q3Xw81abcdefghij:tool:my_tool")
    'job anon:q3Xw81ab…:tool:my_tool!2 of auth:client-a:q3Xw81abcdefghij:tool:my_tool'

    Args:
        text: A key, an id, or a text with any number of them.
    """
    return _ANONYMOUS.sub(r"\1…", text) if "anon:" in text else text


class ShortIds(logging.Filter):
    """Shortens the ids of anonymous tasks in the arguments of log records. It lets every record through."""

    def filter(self, record: logging.LogRecord) -> Literal[True]:
        """Shorten what the record's message will be made of."""
        args: Any = record.args
        if isinstance(args, Mapping):
            record.args = {name: _short(value) for name, value in cast("Mapping[str, Any]", args).items()}
        elif isinstance(args, tuple):
            record.args = tuple(_short(value) for value in cast("tuple[Any, ...]", args))
        return True


def _short(value: Any) -> Any:
    return with_short_ids(value) if isinstance(value, str) else value


_short_ids: Final = ShortIds()


def get_logger(name: str) -> logging.Logger:
    """The logger of a module whose lines name jobs by their Celery ids or compound keys: it shortens both."""
    logger = logging.getLogger(name)
    logger.addFilter(_short_ids)  # adding it again changes nothing
    return logger


def shorten_ids_of_celery() -> None:
    """Have the log lines of Celery's worker show the ids of anonymous tasks shortened, with any formatter."""
    for name in _CELERY_LOGGERS:
        get_logger(name)


class LogFormatter(logging.Formatter):
    """Formats the log records of all loggers, so that no text in them can move a cursor, recolour a terminal, reorder a
    line or pass for another record: the further lines of a message are indented. A record with a traceback names the
    task whose job logs it.

    Args:
        fmt: As for ``logging.Formatter``.
        datefmt: As for ``logging.Formatter``.
        style: As for ``logging.Formatter``.
        inner: Formats the contained record instead, for example with colours of its own.
    """

    def __init__(
        self,
        fmt: str | None = None,
        datefmt: str | None = None,
        style: Literal["%", "{", "$"] = "%",
        *,
        inner: logging.Formatter | None = None,
    ) -> None:
        super().__init__(fmt, datefmt, style)
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; other handlers find it unchanged."""
        safe = copy.copy(record)
        message = f"{record.getMessage()}{_of_task(record)}"
        safe.msg, safe.args = escaped(message, keep="\n\t").replace("\n", _NEXT_LINE), None
        vars(safe).pop(
            "color_message", None
        )  # uvicorn's: the same message again, with the arguments still to be put in
        if record.exc_info and not record.exc_text:
            safe.exc_text = self.formatException(record.exc_info)
        if safe.exc_text:
            safe.exc_text = escaped(safe.exc_text, keep="\n\t")
        if safe.stack_info:
            safe.stack_info = escaped(safe.stack_info, keep="\n\t")
        return with_short_ids(super().format(safe) if self._inner is None else self._inner.format(safe))


def _of_task(record: logging.LogRecord) -> str:
    """Says whose traceback a record brings: a tool's exception is logged by the SDK, which knows of no task."""
    current = get_task_context()
    if current is None or not (record.exc_info or record.exc_text):
        return ""
    return f" (task {shown_task_id(current.task_scope, current.task_id)})"


def contain(logger: logging.Logger) -> None:
    """Have the handlers of a logger format their lines as :class:`LogFormatter` does, in their own format."""
    for handler in logger.handlers:
        if not isinstance(handler.formatter, LogFormatter):
            handler.setFormatter(LogFormatter(inner=handler.formatter or logging.Formatter()))
