"""Log records as JSON, one object a line: ``MCP_CELERY_LOG_FORMAT=json``.

Each record has ``time``, ``level``, ``logger``, ``process`` and ``message``, and where they are known ``task_id``,
``job_id``, ``component``, ``trace_id``, ``span_id``, ``exception`` and the fields of the audit log
(:mod:`mcp_celery.audit`). Ids of anonymous tasks are shortened, as in every log line of this package.

Packages such as python-json-logger write every attribute that a library attaches to a record, and Celery attaches the
arguments of jobs. Here only fields are written that are named.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from opentelemetry import trace

from mcp_celery.audit import FIELDS, NUMBERS
from mcp_celery.common.escaping import escaped
from mcp_celery.context import TaskContext, get_task_context
from mcp_celery.keys import parse_task_key, task_key_from_job_id
from mcp_celery.logs import LogFormatter, contain, shown_task_id, with_short_ids
from mcp_celery.settings import Settings

_OUR_JOBS: Final = ("anon:", "auth:")
"""How the Celery ids of our jobs begin."""
_WITH_HANDLERS: Final = ("fastmcp",)
"""Loggers to which their packages give handlers of their own when they are imported."""
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-")


class JsonFormatter(logging.Formatter):
    """Formats log records as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; other handlers find it unchanged."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **_job_of(record),
            **_audited(record),
            **_trace(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        elif record.exc_text:
            fields["exception"] = record.exc_text
        if record.stack_info:
            fields["stack"] = record.stack_info
        shown = {name: with_short_ids(one) if isinstance(one, str) else one for name, one in fields.items()}
        # Escaped: a terminal must not obey what a client has sent. The value is the same.
        return escaped(json.dumps(shown, ensure_ascii=False))


def json_formatter() -> JsonFormatter:
    """Make a formatter, and have packages that format lines for a terminal leave their records to it."""
    for name in _WITH_HANDLERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    return JsonFormatter()


def formatter(format: str | None = None, datefmt: str | None = None) -> logging.Formatter:  # noqa: A002 - dictConfig's
    """Make the formatter that ``MCP_CELERY_LOG_FORMAT`` names, for configurations of ``logging.config``.

    Args:
        format: Format of lines of text.
        datefmt: Format of their times.

    Raises:
        ConfigurationError: A setting is refused; the message names it.
    """
    return json_formatter() if Settings.load().log_format == "json" else LogFormatter(format, datefmt)


def format_handlers(logger: logging.Logger) -> None:
    """Have the handlers of a logger format their lines as JSON where ``MCP_CELERY_LOG_FORMAT`` says so, else as
    :func:`mcp_celery.logs.contain` does.

    Raises:
        ConfigurationError: A setting is refused; the message names it.
    """
    if Settings.load().log_format == "text":
        contain(logger)
        return
    as_json = json_formatter()
    for handler in logger.handlers:
        handler.setFormatter(as_json)


def _job_of(record: logging.LogRecord) -> dict[str, str]:
    """Which job a record is about: the one that Celery names, else the one that logs it, else one that it names."""
    data: Any = getattr(record, "data", None)
    if isinstance(data, Mapping) and record.name.startswith("celery."):
        named: Mapping[str, Any] = data  # pyright: ignore[reportUnknownVariableType]
        return {"job_id": str(named["id"]), **_parts_of(str(named["id"]))} if "id" in named else {}
    if (current := get_task_context()) is not None:
        return _running(current)
    for one in record.args if isinstance(record.args, tuple) else ():
        if isinstance(one, str) and one.startswith(_OUR_JOBS) and (parts := _parts_of(one)):
            return {"job_id": one.replace("%", "~"), **parts}
    return {}


def _running(context: TaskContext) -> dict[str, str]:
    return {
        "task_id": shown_task_id(context.task_scope, context.task_id),
        "job_id": context.job_id,
        "component": context.key.component_identifier,
    }


def _parts_of(job_id: str) -> dict[str, str]:
    """The task in a Celery id or a compound key; nothing where a part of it is a digest."""
    key = task_key_from_job_id(job_id)
    if key is None:
        return {}
    parts = parse_task_key(key)
    return {
        "task_id": shown_task_id(parts.task_scope, parts.client_task_id),
        "component": parts.component_identifier,
    }


def _audited(record: logging.LogRecord) -> dict[str, object]:
    """The fields of the audit log, in which ``None`` stands for an anonymous caller's scope."""
    attributes = vars(record)
    if "event" not in attributes:
        return {}
    found: dict[str, object] = {name: attributes[name] for name in FIELDS if name in attributes}
    for name in NUMBERS:
        if name in found:
            text = str(found[name])
            found[name] = int(text) if text.isdecimal() else None
    if "tool_error" in found:
        found["tool_error"] = found["tool_error"] == "true"
    return found


def _trace() -> dict[str, str]:
    """The trace in which a record is logged: the current span's, else that of the request that made the running job."""
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        return {"trace_id": trace.format_trace_id(span.trace_id), "span_id": trace.format_span_id(span.span_id)}
    current = get_task_context()
    if current is None or current.snapshot.traceparent is None:
        return {}
    found = _TRACEPARENT.match(current.snapshot.traceparent)
    return {"trace_id": found[1]} if found else {}
