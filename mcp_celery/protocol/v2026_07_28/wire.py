"""The wire of revision 2026-07-28: the extension ``io.modelcontextprotocol/tasks`` (SEP-2663).

Models for what comes in, ``encode_*`` for what goes out. Results are plain dicts on purpose: ``ttlMs`` and other
explicit nulls must reach the wire, and typed models would drop them.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from mcp_types import Notification
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import Field

from mcp_celery.engine import JSONObject, TaskRecord, TaskView
from mcp_celery.errors import INTERNAL_ERROR
from mcp_celery.protocol.shared_wire import TaskIdParams, encode_time
from mcp_celery.protocol.stored_results import Splice

VERSIONS: Final = frozenset(MODERN_PROTOCOL_VERSIONS)
PROGRESS_META_KEY: Final = "mcp-celery/progress"
"""``{"progress": 3, "total": 10}`` in a task's ``_meta``: the numbers behind ``statusMessage``."""
MAX_EVENT_BYTES_META_KEY: Final = "mcp-celery/max-event-bytes"
"""In the ``_meta`` of ``subscriptions/listen``: how many bytes of JSON one notification may have for this client."""


class UpdateParams(TaskIdParams):
    """Parameters of ``tasks/update``."""

    input_responses: dict[str, Any] = Field(alias="inputResponses")


class TaskNotification(Notification[dict[str, Any], Literal["notifications/tasks"]]):
    """``notifications/tasks``: the whole task, as ``tasks/get`` would give it."""

    method: Literal["notifications/tasks"] = "notifications/tasks"
    params: dict[str, Any]


def encode_task(record: TaskRecord) -> JSONObject:
    """The fields that every task object has."""
    task: JSONObject = {
        "taskId": record.task_id,
        "status": record.status,
        "createdAt": encode_time(record.created_at_ms),
        "lastUpdatedAt": encode_time(record.updated_at_ms),
        "ttlMs": record.ttl_ms,
        "pollIntervalMs": record.poll_interval_ms,
    }
    if record.status_message is not None:
        task["statusMessage"] = record.status_message
    return task


def encode_created(record: TaskRecord) -> JSONObject:
    """``CreateTaskResult``: the answer to a request that became a task."""
    return {"resultType": "task", **encode_task(record)}


def encode_detailed(view: TaskView, splice: Splice | None = None) -> JSONObject:
    """``DetailedTask``: the task with its result, its error or its open questions inlined.

    Args:
        view: The task.
        splice: Puts a stored result into the response, where it can.
    """
    record = view.record
    task = encode_task(record)
    if record.progress is not None:
        progress: JSONObject = {"progress": record.progress.value}
        if record.progress.total is not None:
            progress["total"] = record.progress.total
        task["_meta"] = {PROGRESS_META_KEY: progress}
    if record.status == "completed":
        mark = None if splice is None else splice.mark_of(view)
        task["result"] = mark or (None if view.result is None else encode_result(view))
    elif record.status == "failed":
        task["error"] = _encode_error(record)
    elif record.status == "input_required":
        task["inputRequests"] = dict(view.input_requests)
    return task


def encode_result(view: TaskView) -> JSONObject:
    """The result; one that was made under a revision without ``resultType`` gets it."""
    return {"resultType": "complete", **(view.result or {})}


def _encode_error(record: TaskRecord) -> JSONObject:
    error = record.error
    if error is None:
        return {"code": INTERNAL_ERROR, "message": record.status_message or "The task failed"}
    encoded: JSONObject = {"code": error.code, "message": error.message}
    if error.data is not None:
        encoded["data"] = error.data
    return encoded
