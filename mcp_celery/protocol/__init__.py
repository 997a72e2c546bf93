"""The wire: which requests become tasks, how tasks are shown, and how changes are pushed."""

from mcp_celery.protocol.components import (
    asks_first,
    can_ask_first,
    declared_resource,
    list_components,
    may_be_repeated,
    refusal,
    tool_meta,
)
from mcp_celery.protocol.extension import TasksExtension
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.in_process import SubmittedTask, submit
from mcp_celery.protocol.install import around, fit
from mcp_celery.protocol.middleware import CoreTasksMiddleware
from mcp_celery.protocol.push import TaskPush
from mcp_celery.protocol.v2025_11_25 import IMMEDIATE_RESPONSE

__all__ = [
    "IMMEDIATE_RESPONSE",
    "CoreTasksMiddleware",
    "SubmittedTask",
    "TaskHost",
    "TaskPush",
    "TasksExtension",
    "around",
    "asks_first",
    "can_ask_first",
    "declared_resource",
    "fit",
    "list_components",
    "may_be_repeated",
    "refusal",
    "submit",
    "tool_meta",
]
