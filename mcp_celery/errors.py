"""Every error this package raises on purpose, each with the JSON-RPC code it has on the wire.

One root, so that an embedding application can catch the family. The text of an error is part of the interface: one
line that names the setting or the value at fault, and nothing that the caller did not already know.
"""

from __future__ import annotations

from typing import ClassVar, Final

METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
HEADER_MISMATCH: Final = -32020


class McpCeleryError(Exception):
    """Root of the family."""

    code: ClassVar[int] = INTERNAL_ERROR
    """JSON-RPC error code of this class."""


class ConfigurationError(McpCeleryError):
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


class InvalidRequestError(McpCeleryError):
    """No such component, or arguments that it refuses; nothing was created."""

    code = INVALID_PARAMS


class StoreUnavailableError(McpCeleryError):
    """The record store (``MCP_CELERY_REDIS_URL``) did not answer."""

    def __init__(self) -> None:
        super().__init__("The task store is unavailable; try again later")


class SnapshotUnreadableError(McpCeleryError):
    """The caller's context of a task is kept, but cannot be read. Without it no job can run.

    Args:
        reason: Why, for the log. It quotes nothing of what was read.
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


class QueueUnavailableError(McpCeleryError):
    """The broker (``MCP_CELERY_BROKER_URL``) did not take the job, so no task was created."""

    def __init__(self) -> None:
        super().__init__("The task queue is unavailable; no task was created, try again later")


class ResultUnavailableError(McpCeleryError):
    """The task completed, but the result backend no longer has, or cannot give, its result."""

    def __init__(self) -> None:
        super().__init__("The task completed, but its result can no longer be read from the result backend")


class JobFailedError(McpCeleryError):
    """Raised inside a job to end it as ``failed`` with a JSON-RPC error.

    Celery stores ``args`` in the result backend, so they are plain JSON values: ``(code, message, data)``.

    Args:
        error_code: JSON-RPC error code.
        message: Text for the client.
        data: JSON value with details, or None.
    """

    def __init__(self, error_code: int, message: str, data: object = None) -> None:
        super().__init__(error_code, message, data)
        self.error_code = error_code
        self.message = message
        self.data = data

    # Celery puts both into its log, its events and the stored traceback; what a tool says is for its caller.

    def __str__(self) -> str:
        return f"JSON-RPC error {self.error_code}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.error_code})"
