"""The client's half of tasks: for ``mcp.client.Client``, and for any server of SEP-2663 or SEP-1686."""

from mcp_celery.client.calls import call_tool_task, get_prompt_task, list_tasks, read_resource_task
from mcp_celery.client.errors import (
    AnswerError,
    ClientClosedError,
    InvalidTaskError,
    TaskCancelledError,
    TaskEndedError,
    TaskError,
    TaskFailedError,
    TaskGoneError,
    TaskTimeoutError,
    TaskUnreachableError,
)
from mcp_celery.client.extension import TasksClient
from mcp_celery.client.handle import TaskHandle
from mcp_celery.client.http import resilient_http
from mcp_celery.client.wire import Progress, TaskState

__all__ = [
    "AnswerError",
    "ClientClosedError",
    "InvalidTaskError",
    "Progress",
    "TaskCancelledError",
    "TaskEndedError",
    "TaskError",
    "TaskFailedError",
    "TaskGoneError",
    "TaskHandle",
    "TaskState",
    "TaskTimeoutError",
    "TaskUnreachableError",
    "TasksClient",
    "call_tool_task",
    "get_prompt_task",
    "list_tasks",
    "read_resource_task",
    "resilient_http",
]
