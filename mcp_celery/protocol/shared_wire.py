"""Parts of answers that several revisions share."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, RequestParams
from pydantic import Field

from mcp_celery.engine import RpcError, TaskRecord
from mcp_celery.errors import LIMIT_EXCEEDED, RETRY_AFTER

EXTENSION: Final = "io.modelcontextprotocol/tasks"
"""The extension that the server declares to clients of every revision."""
LISTEN: Final = "subscriptions/listen"
"""The method of streams (2026-07-28)."""
IMMEDIATE_RESPONSE: Final = "io.modelcontextprotocol/model-immediate-response"
"""In a tool's ``meta``: a text for the model until the result is there, sent with the task's creation."""
REQUEST_CANCELLED: Final = -32800
"""What the SDK answers, before 2026-07-28, to a request that was cancelled."""
IDEMPOTENCY_KEY: Final = "mcp-celery/idempotency-key"
"""In the ``_meta`` of a request that becomes a task: requests with the same key from the same caller make one task."""
IDEMPOTENCY_HEADER: Final = "idempotency-key"
"""The HTTP header that says the same; what ``_meta`` says counts before it."""
ONLY_AS_TASK: Final = "mcp-celery/only-as-task"
"""In the ``_meta`` of a ``tools/call``: ``true`` where it must not run in the foreground, because the client sends it
again and does not know whether it has run before.
"""
OWN_EXTENSION: Final = "mcp-celery/tasks"
"""The extension whose settings say what this server does with tasks besides the protocol. The schema of the tasks
extension itself allows no settings, and clients take a server that has some for one without tasks (``ext-tasks``
0.2.2).
"""
OWN_SETTINGS: Final[Mapping[str, Any]] = {"idempotentCreation": True}
"""Its settings: the server heeds the two keys above."""
UNLIMITED_MS: Final = 2**53
"""The time to live of a task that is to live as long as possible; the server grants its longest."""


class TaskIdParams(RequestParams):
    """Parameters of the requests about one task."""

    task_id: str = Field(alias="taskId")


def encode_time(milliseconds: int) -> str:
    """ISO 8601 in UTC.

    >>> encode_time(1_700_000_000_123)
    '2023-11-14T22:13:20.123Z'
    """
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def require_result(record: TaskRecord, what: str) -> None:
    """Answer a request as its ended task did, where that has no result.

    Args:
        record: The task.
        what: What its client knows it as, for an error without a message of its own.

    Raises:
        MCPError: The error that the request ended in; -32800 for a cancelled task.
    """
    if record.status == "cancelled":
        raise MCPError(REQUEST_CANCELLED, record.status_message or f"The {what} was cancelled")
    if record.status == "failed":
        error = record.error or RpcError(INTERNAL_ERROR, record.status_message or f"The {what} failed")
        raise as_component_error(error.code, error.message, error.data)


def as_component_error(code: int, message: str, data: object) -> MCPError:
    """An error that a component ended in, as the answer to a request.

    It has no ``retryAfterMs``, for example of a server that the component called: with -32005 that is how this server
    says that it did nothing of a request, and clients send it again.
    """
    if code == LIMIT_EXCEEDED and isinstance(data, Mapping):
        data = {name: value for name, value in cast("Mapping[str, Any]", data).items() if name != RETRY_AFTER}
    return MCPError(code, message, data)
