"""The wire of revision 2025-11-25, where tasks are a part of the core protocol (SEP-1686).

Models for what comes in, ``encode_*`` for what goes out, as plain dicts. The engine stores how a job ended; this
module encodes it as this revision has it: a result with ``isError`` is a task that ``failed``, and can still be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from mcp_types import RequestParams
from mcp_types.methods import serialize_server_result
from pydantic import BaseModel, ConfigDict, Field

from mcp_celery.engine import JSONObject, Progress, TaskPage, TaskRecord, TaskStatus, TaskView
from mcp_celery.keys import METHODS, TaskType
from mcp_celery.protocol.shared_wire import IMMEDIATE_RESPONSE, UNLIMITED_MS, encode_time

VERSION: Final = "2025-11-25"
RELATED_TASK: Final = "io.modelcontextprotocol/related-task"
STATUS_NOTIFICATION: Final = "notifications/tasks/status"
PROGRESS_NOTIFICATION: Final = "notifications/progress"
CREATE: Final = "mcp_celery/createTask"
"""Name of the private method that serves a request with ``task`` in it; refused when it comes from the wire."""


class TaskMetadata(BaseModel):
    """``task`` in a request's parameters."""

    ttl: int | None = Field(default=None, gt=0, strict=True)

    @property
    def asked_ttl_ms(self) -> int | None:
        """The time to live in milliseconds, None where the client says nothing."""
        return UNLIMITED_MS if self.ttl is None and "ttl" in self.model_fields_set else self.ttl


class Augmented(BaseModel):
    """Parameters of a request with ``task``."""

    model_config = ConfigDict(extra="allow")

    task: TaskMetadata


class CreateParams(RequestParams):
    """Parameters of :data:`CREATE`: the request as it came."""

    task_type: TaskType = Field(alias="taskType")
    request: dict[str, Any]


class ListParams(RequestParams):
    """Parameters of ``tasks/list``."""

    cursor: str | None = None


def encode_capability(task_types: Iterable[TaskType], *, lists: bool) -> JSONObject:
    """``capabilities.tasks`` of ``initialize``.

    Args:
        task_types: Which requests can become tasks, at least one.
        lists: Whether there is a ``tasks/list``.
    """
    requests: dict[str, dict[str, JSONObject]] = {}
    for task_type in sorted(task_types):
        family, _slash, action = METHODS[task_type].partition("/")
        requests[family] = {action: {}}
    return {**({"list": {}} if lists else {}), "cancel": {}, "requests": requests}


def status_of(record: TaskRecord) -> TaskStatus:
    """The status as this revision has it."""
    return "failed" if record.status == "completed" and record.is_error else record.status


def encode_task(record: TaskRecord) -> JSONObject:
    """``Task``."""
    task: JSONObject = {
        "taskId": record.task_id,
        "status": status_of(record),
        "createdAt": encode_time(record.created_at_ms),
        "lastUpdatedAt": encode_time(record.updated_at_ms),
        "ttl": record.ttl_ms,
        "pollInterval": record.poll_interval_ms,
    }
    message = record.status_message or ("The tool reported an error" if record.is_error else None)
    if message is not None:
        task["statusMessage"] = message
    return task


def encode_created(record: TaskRecord, immediate_response: str | None = None) -> JSONObject:
    """``CreateTaskResult``.

    Args:
        record: The new task.
        immediate_response: A text for the model until the result is there, None for none.
    """
    created: JSONObject = {"task": encode_task(record)}
    if immediate_response is not None:
        created["_meta"] = {IMMEDIATE_RESPONSE: immediate_response}
    return created


def encode_page(page: TaskPage) -> JSONObject:
    """``ListTasksResult``."""
    tasks: JSONObject = {"tasks": [encode_task(record) for record in page.records]}
    return tasks if page.cursor is None else {**tasks, "nextCursor": page.cursor}


def encode_result(view: TaskView) -> JSONObject:
    """The result as the request would have returned it, with its task; from tasks of any revision."""
    method = METHODS[view.record.task_type]
    result = serialize_server_result(method, VERSION, view.result or {})
    return {**result, "_meta": {**(result.get("_meta") or {}), **related_to(view.record.task_id)}}


def encode_progress(record: TaskRecord, progress: Progress, token: str | int) -> JSONObject:
    """Parameters of ``notifications/progress``.

    Args:
        record: The task.
        progress: Its last progress.
        token: The creating request's progress token.
    """
    params: JSONObject = {"progressToken": token, "progress": progress.value, "_meta": related_to(record.task_id)}
    if progress.total is not None:
        params["total"] = progress.total
    if record.status_message is not None:
        params["message"] = record.status_message
    return params


def related_to(task_id: str) -> JSONObject:
    """``_meta`` of a message that belongs to a task."""
    return {RELATED_TASK: {"taskId": task_id}}
