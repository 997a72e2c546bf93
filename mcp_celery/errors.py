"""Every error this package raises on purpose, each with the JSON-RPC code it has on the wire.

One root, so that an embedding application can catch the family. The text of an error is part of the interface: one
line that names the setting or the value at fault, and nothing that the caller did not already know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal

from mcp_celery.common.jsonable import json_text

INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
HEADER_MISMATCH: Final = -32020
LIMIT_EXCEEDED: Final = -32005
"""Of the codes that MCP leaves to implementations (-32000 to -32019), the one that has this meaning in EIP-1474."""
RETRY_AFTER: Final = "retryAfterMs"
"""In the data of such an error: when to send the request again, of which nothing was done."""
_IDEMPOTENCY_KEY: Final = 'idempotency key (_meta["mcp-celery/idempotency-key"] or the header Idempotency-Key)'

Fault = Literal["damaged", "newer", "refused"]
"""What is wrong with what the record store holds: it has another type, or fields that cannot be read; a later release
wrote it; or it is not sealed or signed with this process's encryption keys, perhaps with those of others.
"""
_FAULTS: Final[Mapping[Fault, str]] = {
    "damaged": "is damaged",
    "newer": "was written by a later release",
    "refused": "was not written with this server's MCP_CELERY_ENCRYPTION_KEYS, or was changed",
}


class McpCeleryError(Exception):
    """Root of the family."""

    code: ClassVar[int] = INTERNAL_ERROR
    """JSON-RPC error code of this class."""
    data: object = None
    """JSON value with details for programs, on the wire too."""


class ConfigurationError(McpCeleryError, ValueError):
    """A setting or a declaration is wrong; the message names it. Raised at start, never while a request is served."""


class TaskNotFoundError(McpCeleryError):
    """Unknown, foreign and expired tasks alike: who may not read a task may not learn that it exists (SEP-2663)."""

    code = INVALID_PARAMS

    def __init__(self) -> None:
        super().__init__("Task not found: it does not exist, has expired, or belongs to another caller")


class InvalidCursorError(McpCeleryError):
    """A cursor that ``tasks/list`` never gave."""

    code = INVALID_PARAMS

    def __init__(self) -> None:
        super().__init__("Invalid cursor: take it as nextCursor gave it, or begin without one")


class TaskModeError(McpCeleryError):
    """A component was asked for in a way that its ``TaskConfig.mode`` does not allow."""

    code = METHOD_NOT_FOUND


class MissingScopesError(McpCeleryError):
    """The caller's token lacks OAuth scopes that ``TaskConfig.required_scopes`` names.

    Args:
        component: What it asked for.
        required: The scopes that it needs.
    """

    code = INVALID_REQUEST

    def __init__(self, component: str, required: Sequence[str]) -> None:
        super().__init__(f"{component.capitalize()} needs a token with the scopes {', '.join(required)}")
        self.data = {"requiredScopes": list(required)}


class InvalidRequestError(McpCeleryError):
    """No such component, or arguments that it refuses; nothing was created."""

    code = INVALID_PARAMS


class StoreUnavailableError(McpCeleryError):
    """The record store (``MCP_CELERY_REDIS_URL``) did not answer.

    Args:
        is_sent: Whether the store may have carried out the command nevertheless.
    """

    def __init__(self, *, is_sent: bool = True) -> None:
        super().__init__("The task store is unavailable; try again later")
        self.is_sent = is_sent


class MessageRefusedError(McpCeleryError):
    """The store cannot put a job's message into the broker's queue, and has done nothing.

    Callers do not see it: the job is published over a connection to the broker then.

    Args:
        reason: Why, for the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("The task store cannot put the job into its queue")
        self.reason = reason


class StoredDataError(McpCeleryError):
    """The record store answers, but what it holds of a task cannot be used.

    Args:
        reason: What is wrong, for the log. It names the key.
        fault: What kind of fault that is.
    """

    def __init__(self, reason: str, fault: Fault = "damaged") -> None:
        super().__init__(f"The task cannot be read: what the task store holds of it {_FAULTS[fault]}")
        self.reason = reason
        self.fault: Fault = fault


class SnapshotUnreadableError(McpCeleryError):
    """The caller's context of a task is kept, but cannot be read. Without it no job can run.

    Args:
        reason: Why, for the log. It quotes none of the stored data.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("The request's context cannot be restored, so the job cannot run")
        self.reason = reason


class InvalidAnswerError(McpCeleryError):
    """An answer does not fit the question that was asked; the question stays.

    Args:
        key: Of the question.
        reason: What is wrong. It quotes nothing of the answer.
    """

    code = INVALID_PARAMS

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"The answer to {key!r} was not taken: {reason}")


class AnswersTooLargeError(McpCeleryError):
    """A request brings more than ``MCP_CELERY_MAX_INPUT_BYTES`` of answers; none was taken.

    Args:
        most: The limit in bytes.
    """

    code = INVALID_PARAMS

    def __init__(self, most: int) -> None:
        super().__init__(f"The answers were not taken: together they are larger than {most} bytes")


class ArgumentsTooLargeError(McpCeleryError):
    """A request that was to become a task is larger than ``MCP_CELERY_MAX_ARGUMENT_BYTES``; none was created.

    Args:
        size: Of its parameters and ``_meta``, as JSON, in bytes.
        most: The limit in bytes.
    """

    code = INVALID_PARAMS

    def __init__(self, size: int, most: int) -> None:
        super().__init__(
            f"The request is too large for a task: {size} bytes as JSON; this server takes {most} "
            "(MCP_CELERY_MAX_ARGUMENT_BYTES)"
        )


class InvalidIdempotencyKeyError(McpCeleryError):
    """A request that was to become a task has an idempotency key that cannot be used; none was created.

    Args:
        reason: Why. It quotes nothing of the key.
    """

    code = INVALID_PARAMS

    def __init__(self, reason: str) -> None:
        super().__init__(f"The {_IDEMPOTENCY_KEY} cannot be used: {reason}")


class IdempotencyKeyReusedError(McpCeleryError):
    """A request has the idempotency key of an earlier one that said something else; nothing was created."""

    code = INVALID_PARAMS

    def __init__(self) -> None:
        super().__init__(
            f"The {_IDEMPOTENCY_KEY} was used for another request, whose task still exists. A key makes one task of "
            "one request however often it is sent: send a new key with each new request"
        )


class ComponentExitedError(McpCeleryError):
    """A component raised an exception that is no ``Exception``, for example ``SystemExit``: it ends the request alone.

    Args:
        name: Name of the exception's class.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"The component raised {name}, which would have ended its process")


class QueueUnavailableError(McpCeleryError):
    """The broker (``MCP_CELERY_BROKER_URL``) did not take the job, so no task was created.

    Args:
        is_sent: Whether the job may have reached the broker nevertheless.
    """

    text: ClassVar[str] = "The task queue is unavailable; no task was created, try again later"
    """The message, for the caller."""

    def __init__(self, *, is_sent: bool = True) -> None:
        super().__init__(self.text)
        self.is_sent = is_sent


class QueueRefusedError(QueueUnavailableError):
    """The broker has the queue with other arguments than the server declares it with, so no task was created.

    Args:
        reason: Both sets of arguments and what to do, for the log.
    """

    text = "The task queue does not fit this server's settings, as the server's log explains; no task was created"

    def __init__(self, reason: str) -> None:
        super().__init__(is_sent=False)
        self.reason = reason


class LimitExceededError(McpCeleryError):
    """A limit of the server was reached, so the request was refused; the same one may succeed later.

    Args:
        message: One line for the caller.
        most: The limit.
        retry_after_ms: When to ask again, None where that depends on the caller.
    """

    code = LIMIT_EXCEEDED
    limit: ClassVar[str]
    """Which limit it is, in ``data`` and in the audit log."""

    def __init__(self, message: str, *, most: int, retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms
        again = {} if retry_after_ms is None else {RETRY_AFTER: retry_after_ms}
        self.data = {"limit": self.limit, "most": most, **again}


class TooManyTasksError(LimitExceededError):
    """The requestor has as many open tasks as ``MCP_CELERY_MAX_TASKS_PER_SCOPE`` allows; none was created.

    Args:
        most: The limit.
    """

    limit = "open_tasks"

    def __init__(self, most: int) -> None:
        super().__init__(
            f"You have as many open tasks as this server allows ({most}); wait for one to end, or cancel one",
            most=most,
        )


class TooManyCreationsError(LimitExceededError):
    """The requestor creates tasks more often than ``MCP_CELERY_CREATE_RATE_PER_SCOPE``, or its component's
    ``rate_limit_per_caller``, allows; none was created.

    Args:
        most: How many it may create in a window.
        window_ms: How long that is.
        retry_after_ms: When it may create the next one.
    """

    limit = "creation_rate"

    def __init__(self, most: int, *, window_ms: int, retry_after_ms: int) -> None:
        super().__init__(
            f"You have created as many tasks as this server allows ({most} in {window_ms / 1000:g} s); no task was "
            f"created, try again in {-(-retry_after_ms // 1000)} s",
            most=most,
            retry_after_ms=retry_after_ms,
        )


class TooManyBytesError(LimitExceededError):
    """As many bytes are kept for the requestor as ``MCP_CELERY_MAX_STORED_BYTES_PER_SCOPE`` allows; none was created.

    Args:
        most: The limit in bytes.
        retry_after_ms: When the first of its tasks expires.
    """

    limit = "stored_bytes"

    def __init__(self, most: int, *, retry_after_ms: int) -> None:
        super().__init__(
            f"Your tasks and their results take as many bytes as this server keeps for one caller ({most}); no task "
            f"was created. The first of them expires in {-(-retry_after_ms // 1000)} s; ask for shorter times to live",
            most=most,
            retry_after_ms=retry_after_ms,
        )


class StoreFullError(LimitExceededError):
    """More of the store's memory is in use than ``MCP_CELERY_MAX_STORE_MEMORY_PERCENT``; no task was created.

    Args:
        most: The limit in percent.
        retry_after_ms: When it is looked again.
    """

    limit = "store_memory"

    def __init__(self, most: int, *, retry_after_ms: int) -> None:
        super().__init__(
            "The task store is nearly full; no task was created, try again later",
            most=most,
            retry_after_ms=retry_after_ms,
        )


class QueueFullError(LimitExceededError):
    """As many jobs wait for a worker as ``MCP_CELERY_MAX_QUEUE_LENGTH`` allows; no task was created.

    Args:
        most: The limit.
        retry_after_ms: When it is looked again.
    """

    limit = "queue_length"

    def __init__(self, most: int, *, retry_after_ms: int) -> None:
        super().__init__(
            f"The task queue is full: as many tasks wait for a worker as this server allows ({most}); "
            "no task was created, try again later",
            most=most,
            retry_after_ms=retry_after_ms,
        )


class TooManyLookupsError(LimitExceededError):
    """More look-ups failed than ``MCP_CELERY_MAX_FAILED_LOOKUPS_PER_MINUTE`` allows one requestor; none is made now.

    Args:
        most: The limit.
        retry_after_ms: When the requestor may ask again.
    """

    limit = "failed_lookups"

    def __init__(self, most: int, *, retry_after_ms: int) -> None:
        super().__init__(
            f"You have asked for tasks that are not there as often as this server allows in a minute ({most}); "
            f"ask again in {-(-retry_after_ms // 1000)} s",
            most=most,
            retry_after_ms=retry_after_ms,
        )


class ServerBusyError(LimitExceededError):
    """This process works on as many requests as ``MCP_CELERY_MAX_PENDING_REQUESTS`` allows; nothing was done.

    Args:
        most: The limit.
        retry_after_ms: When there will be room.
    """

    limit = "pending_requests"

    def __init__(self, most: int, *, retry_after_ms: int) -> None:
        super().__init__(
            "The server is busy; nothing was done, try again later", most=most, retry_after_ms=retry_after_ms
        )


class TooManyStreamsError(LimitExceededError):
    """The requestor holds as many streams open at this process as ``MCP_CELERY_MAX_STREAMS_PER_SCOPE`` allows.

    Args:
        most: The limit.
    """

    limit = "open_streams"

    def __init__(self, most: int) -> None:
        super().__init__(
            f"You have as many subscription streams open as this server allows ({most}); close one, or name more tasks "
            "in one",
            most=most,
        )


class StreamsFullError(LimitExceededError):
    """This process holds as many streams open as ``MCP_CELERY_MAX_STREAMS`` allows.

    Args:
        most: The limit.
        retry_after_ms: When to try again.
    """

    limit = "streams"

    def __init__(self, most: int, *, retry_after_ms: int) -> None:
        super().__init__(
            f"The server holds as many subscription streams open as it may ({most}); try again later, or poll",
            most=most,
            retry_after_ms=retry_after_ms,
        )


class ResultUnavailableError(McpCeleryError):
    """The task completed, but the result backend no longer has, or cannot give, its result."""

    def __init__(self) -> None:
        super().__init__("The task completed, but its result can no longer be read from the result backend")


class ResultRefusedError(McpCeleryError):
    """The stored result of a completed task was forged, changed or moved, or was sealed with other keys."""

    def __init__(self) -> None:
        super().__init__("The task completed, but its stored result was not sealed for it with the server's keys")


class SealedJobError(McpCeleryError):
    """Stands in Celery's result backend for a :class:`JobFailedError`, where there are encryption keys.

    Args:
        sealed: The sealed arguments of that.
    """

    def __init__(self, sealed: str) -> None:
        super().__init__(sealed)

    def __str__(self) -> str:
        return "JSON-RPC error, sealed"

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class JobFailedError(McpCeleryError):
    """Raised inside a job to end it as ``failed`` with a JSON-RPC error.

    Celery stores ``args`` in the result backend: ``(code, message, None, data as JSON text)``. Of a text no serializer
    of Celery changes anything. Release 0.1.0 wrote, and reads, the data as the third.

    Args:
        error_code: JSON-RPC error code.
        message: Text for the client.
        data: JSON value with details, or None.
        data_json: The same as JSON text, where the exception is made from its ``args``.

    Raises:
        NotJSONError: The data is no JSON value.
    """

    def __init__(self, error_code: int, message: str, data: object = None, data_json: str | None = None) -> None:
        if data is not None:
            data_json = json_text(data)
        super().__init__(error_code, message, None, data_json)
        self.error_code = error_code
        self.message = message
        self.data_json = data_json
        self.data = None if data_json is None else json.loads(data_json)
        self.data_bytes = 0 if data_json is None else len(data_json.encode())

    # Celery puts both into its log, its events and the stored traceback; what a tool says is for its caller.

    def __str__(self) -> str:
        return f"JSON-RPC error {self.error_code}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.error_code})"
