"""How a job ends: what the job returns to Celery, and what Celery's stored result says of the task.

A job that ends in a result, ``isError`` or not, returns it: Celery's SUCCESS is MCP's ``completed``. A JSON-RPC error
is raised as ``JobFailedError``: Celery's FAILURE is MCP's ``failed``. So Flower and MCP tell the same story.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from mcp_celery.engine.record import Change, JSONObject, Progress, RpcError, StoredResult
from mcp_celery.errors import INTERNAL_ERROR, JobFailedError

SUCCESS: Final = "SUCCESS"
FAILURE: Final = "FAILURE"
REVOKED: Final = "REVOKED"

FAILURE_REASONS: Final[Mapping[str, str]] = {
    "SoftTimeLimitExceeded": "The job exceeded its soft time limit",
    "TimeLimitExceeded": "The job exceeded its time limit and was ended",
    "WorkerLostError": "The worker process that ran the job ended unexpectedly",
    "OperationalError": "The job was to be tried again, but the broker was unavailable",
    "NotRegistered": "No worker of the queue knows this job: they run another version of the server or of the app",
    "EncodeError": "The job's result could not be serialized",
    "UnpickleableExceptionWrapper": "The job's error could not be serialized",
    "TaskRevokedError": "The job was revoked",
    "WorkerDied": "The worker that ran the job has died; the job may have had effects, so it is not run again",
    "WorkersDied": "The worker that had the job has died, too often for the job to be tried again",
    "SnapshotUnreadableError": "The request's context cannot be restored, so the job cannot run",
    "UnreadableResult": "The job's result is stored in a form that the server cannot read: see accept_content and "
    "result_serializer",
    "ResultLost": "The job completed, but its result could not be stored in the result backend",
}
"""Texts for failures that no tool reported, by the exception's name. Exceptions' own texts stay in the worker's log."""

UNREADABLE: Final = StoredResult(FAILURE, {"exc_type": "UnreadableResult"})
"""What stands for a stored result that is there and cannot be read."""
MAX_MESSAGE_CHARS: Final = 2_000
"""A message is for people, and is carried by every push and poll of the task."""
UNKNOWN_REASON: Final = "The job failed unexpectedly; the worker's log says why"
EXPIRED_REASON: Final = "The job expired before a worker could start it"


class JobOutcome:
    """What a job returns to Celery. Its ``repr`` keeps the contents out of Flower, of events and of logs.

    Args:
        result: The wire result of the MCP request.
        status_message: The job's last progress message, to be kept with the terminal status.
        progress: The numbers behind it.

    Attributes:
        told: Whether the task has been moved already, together with the storing of this result.
    """

    __slots__ = ("progress", "result", "status_message", "told")

    def __init__(self, result: JSONObject, status_message: str | None = None, progress: Progress | None = None) -> None:
        self.result = result
        self.status_message = status_message
        self.progress = progress
        self.told = False

    @property
    def is_error(self) -> bool:
        """Whether the tool itself reported an error."""
        return bool(self.result.get("isError"))

    def __json__(self) -> JSONObject:
        """For kombu's JSON encoder."""
        progress = None if self.progress is None else [self.progress.value, self.progress.total]
        return {"result": self.result, "statusMessage": self.status_message, "progress": progress}

    def __repr__(self) -> str:
        if self.result.get("resultType") == "input_required":
            return "<input required>"
        return "<tool error>" if self.is_error else "<completed>"

    @classmethod
    def from_json(cls, value: object) -> JobOutcome | None:
        """Read what :meth:`__json__` gave; None for anything else."""
        if not isinstance(value, dict):
            return None
        found = cast(JSONObject, value)
        result, message, progress = found.get("result"), found.get("statusMessage"), found.get("progress")
        if not isinstance(result, dict):
            return None
        return cls(
            cast(JSONObject, result),
            message if isinstance(message, str) else None,
            Progress(*cast("list[float]", progress)) if isinstance(progress, list) else None,
        )


def encodable(value: Any) -> Any:
    r"""A JSON value without lone surrogates, which names of files can hold (``os.fsdecode``) and UTF-8 cannot.

    >>> encodable({"name": ["caf\udce9"]})
    {'name': ['caf?']}
    """
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {encodable(key): encodable(one) for key, one in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [encodable(one) for one in cast("list[Any]", value)]
    return value


def failure(exception_name: str, arguments: Sequence[Any] = ()) -> Change:
    """The change that a job's exception makes.

    Args:
        exception_name: Name of its class.
        arguments: For ``JobFailedError`` the JSON-RPC error; ignored for every other exception.
    """
    code, message, data = (*arguments, None, None, None)[:3]
    if exception_name == JobFailedError.__name__ and isinstance(code, int) and isinstance(message, str):
        error = RpcError(code, encodable(message), encodable(data))
    else:
        error = RpcError(INTERNAL_ERROR, FAILURE_REASONS.get(exception_name, UNKNOWN_REASON))
    return Change(to="failed", error=error, status_message=error.message)


def expired(retries: int = 0) -> Change:
    """The change of a job that nobody began in time, given how often it had been tried again."""
    error = RpcError(INTERNAL_ERROR, EXPIRED_REASON)
    return Change(to="failed", unless_begun=retries, error=error, status_message=EXPIRED_REASON)


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
    """What a tool says went wrong, None when it says it without text."""
    for block in result.get("content") or ():
        if isinstance(block, dict) and isinstance(text := cast(JSONObject, block).get("text"), str) and text:
            return text[:MAX_MESSAGE_CHARS]
    return None


def settlement(stored: StoredResult | None) -> Change | None:
    """The change that a stored result owes to a record that is still open, None while the job has not ended.

    One that cannot be read here owes none: the worker that stored it tells of the end itself.
    """
    if stored is None or stored == UNREADABLE:
        return None
    if stored.state == SUCCESS:
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
