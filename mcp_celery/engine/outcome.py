"""How a job ends: what the job returns to Celery, and how a task is read from Celery's stored result.

A job that ends in a result, ``isError`` or not, returns it: Celery's SUCCESS is MCP's ``completed``. A JSON-RPC error
is raised as ``JobFailedError``: Celery's FAILURE is MCP's ``failed``. So Flower and MCP agree.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from typing_extensions import override

from mcp_celery.common.formats import FORMAT, SEALED_RESULT, UNNUMBERED, NewerFormatError, is_readable
from mcp_celery.common.jsonable import json_text, json_value, utf8_text
from mcp_celery.engine.record import Change, JSONObject, Progress, RpcError, StoredResult, TaskRecord
from mcp_celery.errors import INTERNAL_ERROR, JobFailedError

logger = logging.getLogger(__name__)

SUCCESS: Final = "SUCCESS"
FAILURE: Final = "FAILURE"
REVOKED: Final = "REVOKED"

FAILURE_REASONS: Final[Mapping[str, str]] = {
    "SoftTimeLimitExceeded": "The job exceeded its soft time limit",
    "TimeLimitExceeded": "The job exceeded its time limit and was ended",
    "WorkerLostError": "The worker process that ran the job ended unexpectedly",
    "OperationalError": "The job was to be tried again, but the broker was unavailable",
    "Reject": "The job was to be tried again, but the broker was unavailable",  # what Celery 5.7 makes of the former
    "NotRegistered": "No worker of the queue knows this job: they run another version of the server or of the app",
    "EncodeError": "The job's result could not be serialized",
    "UnpickleableExceptionWrapper": "The job's error could not be serialized",
    "TaskRevokedError": "The job was revoked",
    "CancelledInsideError": "The component cancelled its own job",
    "CancelledError": "The component cancelled its own job",
    "WorkerDied": "The worker that ran the job has died; the job may have had effects, so it is not run again",
    "WorkersDied": "The worker that had the job has died, too often for the job to be tried again",
    "JobLost": "The broker lost the job, which was published as often as MCP_CELERY_MAX_REDELIVERIES allows",
    "ResultLost": "The job completed, but its result could not be stored in the result backend",
    "SnapshotUnreadableError": "The request's context cannot be restored, so the job cannot run",
    "NewerFormatError": "The job was published by a later release of mcp-celery-backend than its worker's",
    "UnreadableResult": "The job's result is stored in a form that the server cannot read: see accept_content and "
    "result_serializer",
    "RefusedResult": "The job's stored result is not one that a worker with the server's MCP_CELERY_ENCRYPTION_KEYS "
    "has stored for it",
}
"""Texts for failures that no tool reported, by the exception's name. Exceptions' own texts stay in the worker's log."""

UNREADABLE: Final = StoredResult(FAILURE, {"exc_type": "UnreadableResult"})
"""What stands for a stored result that is there and cannot be read."""
REFUSED: Final = StoredResult(FAILURE, {"exc_type": "RefusedResult"})
"""What stands for a stored result that was forged, changed or moved, or that was sealed with other keys."""
MAX_MESSAGE_CHARS: Final = 2_000
"""A message is for people, and is carried by every push and poll of the task."""
LARGE_RESULT_BYTES: Final = 32 * 1024
"""From this size on a result backend may refuse a result for its size. MariaDB's BLOB, the smallest limit of a backend
that is known, holds 64 KB.
"""
UNKNOWN_REASON: Final = "The job failed unexpectedly; the worker's log says why"
EXPIRED_REASON: Final = "The job expired before a worker could start it"
_OWN_REASONS: Final = frozenset({*FAILURE_REASONS.values(), UNKNOWN_REASON, EXPIRED_REASON})


def is_own_reason(error: RpcError) -> bool:
    """Whether an error is one of this library's own texts, which hold nothing of the component or the caller."""
    return error.code == INTERNAL_ERROR and error.data is None and error.message in _OWN_REASONS


class JobOutcome:
    """The value that a job returns to Celery. Its ``repr`` keeps the contents out of Flower, events and logs.

    Celery stores the result as one text. Its serializers give a meaning to some values inside (kombu's JSON to objects
    with the keys ``__type__`` and ``__value__``), or cannot carry them; of a text they change nothing.

    Args:
        result: The wire result of the MCP request, plain JSON values.
        status_message: The job's last progress message, to be kept with the terminal status.
        progress: The numbers behind it.
        form: In which form of :mod:`mcp_celery.common.formats` it is stored, unless it is sealed.

    Attributes:
        told: Whether the task has been moved already, together with the storing of this result.

    Raises:
        NotJSONError: The result cannot be written as JSON; raised where it is written first.
    """

    __slots__ = ("_result", "_text", "form", "is_error", "progress", "status_message", "told")

    def __init__(
        self,
        result: JSONObject,
        status_message: str | None = None,
        progress: Progress | None = None,
        *,
        form: int = FORMAT,
    ) -> None:
        self.is_error = bool(result.get("isError"))
        self.status_message = status_message
        self.progress = progress
        self.told = False
        self.form = form
        self._result: JSONObject | None = result
        self._text: str | None = None

    @property
    def result(self) -> JSONObject:
        """The wire result."""
        if self._result is None:
            self._result = cast(JSONObject, json.loads(self._text or "{}"))
        return self._result

    @property
    def text(self) -> str:
        """The wire result as JSON text."""
        if self._text is None:
            result = self.result
            # In front a server finds it without reading the text.
            first = {"resultType": result["resultType"]} if "resultType" in result else {}
            self._text = json_text({**first, **result})
        return self._text

    @property
    def unread_text(self) -> str | None:
        """The wire result as it was stored; None where it was not stored as a text, or has been read since."""
        return self._text if self._result is None else None

    @property
    def size(self) -> int:
        """Bytes of the wire result as UTF-8 encoded JSON, which is what limits of results count."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())

    def __json__(self) -> JSONObject:
        """The stored form, for kombu's JSON encoder too."""
        if self.form == UNNUMBERED:
            return {"result": json.loads(self.text), **self._told}
        return {**self.description, "result": self.text}

    @property
    def description(self) -> JSONObject:
        """The fields that are stored beside the wire result."""
        return {"format": FORMAT, "isError": self.is_error, **self._told}

    @property
    def _told(self) -> JSONObject:
        progress = None if self.progress is None else [self.progress.value, self.progress.total]
        return {"statusMessage": self.status_message, "progress": progress}

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobOutcome) and (self.result, self.description) == (other.result, other.description)

    @override
    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        if self._result is not None and self._result.get("resultType") == "input_required":
            return "<input required>"
        return "<tool error>" if self.is_error else "<completed>"

    @classmethod
    def from_json(cls, value: object) -> JobOutcome | None:
        """Read what :meth:`__json__` gave, in this form or an earlier one; None for anything else.

        A result in a later form is logged as such, for it is unreadable too.
        """
        if not isinstance(value, dict):
            return None
        found = cast(JSONObject, value)
        if is_of_later_release(found):
            logger.error("could not read a result: %s", NewerFormatError("it", found["format"], SEALED_RESULT))
            return None
        message, progress = found.get("statusMessage"), found.get("progress")
        message = message if isinstance(message, str) else None
        numbers = Progress(*cast("list[float]", progress)) if isinstance(progress, list) else None
        result = found.get("result")
        if isinstance(result, dict):
            return cls(cast(JSONObject, result), message, numbers)
        if not isinstance(result, str) or "format" not in found:
            return None
        outcome = cls({}, message, numbers)
        outcome._result, outcome._text, outcome.is_error = None, result, found.get("isError") is True
        return outcome


def is_of_later_release(value: object) -> bool:
    """Whether a stored result is in a form that this release cannot read."""
    if not isinstance(value, dict):
        return False
    return not is_readable(cast(JSONObject, value).get("format", UNNUMBERED), SEALED_RESULT)


def failure(exception_name: str, arguments: Sequence[Any] = ()) -> Change:
    """The change that a job's exception makes.

    Args:
        exception_name: Name of its class.
        arguments: For ``JobFailedError`` the JSON-RPC error; ignored for every other exception.
    """
    code, message, data, data_json = (*arguments, None, None, None, None)[:4]
    if exception_name == JobFailedError.__name__ and isinstance(code, int) and isinstance(message, str):
        error = RpcError(code, utf8_text(message[:MAX_MESSAGE_CHARS]), _error_data(data, data_json))
    else:
        error = RpcError(INTERNAL_ERROR, FAILURE_REASONS.get(exception_name, UNKNOWN_REASON))
    return Change(to="failed", error=error, status_message=error.message)


def _error_data(data: Any, data_json: Any) -> Any:
    """The data of an error, which release 0.1.0 stored as it was."""
    try:
        return json.loads(data_json) if isinstance(data_json, str) else json_value(data)
    except ValueError:
        return None


def expired(retries: int = 0) -> Change:
    """The change of a job that no worker started in time, given how often it had been retried."""
    error = RpcError(INTERNAL_ERROR, EXPIRED_REASON)
    return Change(to="failed", unless_begun=retries, error=error, status_message=EXPIRED_REASON)


def too_large(size: int, most: int) -> str:
    """The reason of a task that fails because its result is too large.

    Args:
        size: The result's bytes as JSON.
        most: The limit.
    """
    return f"The result has {size} bytes as JSON, more than MCP_CELERY_MAX_RESULT_BYTES allows ({most})"


def refused(record: TaskRecord) -> TaskRecord:
    """A completed task whose stored result is refused, as its owner sees it. The record in the store is not changed."""
    change = failure("RefusedResult")
    return replace(record, status="failed", is_error=False, error=change.error, status_message=change.status_message)


def result_lost(size: int) -> Change:
    """The change of a job that completed, and whose result the result backend did not store.

    Args:
        size: The result's bytes as JSON: most backends have a limit.
    """
    if size < LARGE_RESULT_BYTES:
        return failure("ResultLost")
    text = f"The job completed, but the result backend does not hold its result of {size} bytes"
    return Change(to="failed", error=RpcError(INTERNAL_ERROR, text), status_message=text)


def revoked() -> Change:
    """The change of a job that an operator revoked."""
    return Change(to="cancelled", status_message="The job was revoked")


def success(outcome: JobOutcome) -> Change:
    """The change that a job's return makes."""
    return Change(
        to="completed",
        is_error=outcome.is_error,
        # Of what others have said of the task, for example that it is tried again, nothing holds any more.
        status_message=(_error_text(outcome.result) if outcome.is_error else None) or outcome.status_message or "",
        progress=outcome.progress,
    )


def _error_text(result: JSONObject) -> str | None:
    """The error text of a tool; None if its error has no text."""
    for block in result.get("content") or ():
        if isinstance(block, dict) and isinstance(text := cast(JSONObject, block).get("text"), str) and text:
            return text[:MAX_MESSAGE_CHARS]
    return None


def settlement(stored: StoredResult | None) -> Change | None:
    """The change that a stored result owes to a record that is still open, None while the job has not ended.

    One that cannot be read here owes none: the worker that stored it reports the end itself.
    """
    if stored is None or stored == UNREADABLE:
        return None
    if stored.state == SUCCESS:
        if is_of_later_release(stored.value):
            return None
        outcome = JobOutcome.from_json(stored.value)
        return failure("UnknownResult") if outcome is None else success(outcome)
    if stored.state == REVOKED:
        return revoked()
    if stored.state == FAILURE:
        described = cast(JSONObject, stored.value) if isinstance(stored.value, dict) else {}
        arguments = described.get("exc_message", ())
        return failure(
            str(described.get("exc_type")),
            cast(Sequence[Any], arguments) if isinstance(arguments, list | tuple) else (),
        )
    return None
