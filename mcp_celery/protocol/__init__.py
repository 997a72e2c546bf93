"""The wire: which requests become tasks, how tasks are shown, and how changes are pushed."""

from mcp_celery.protocol.components import (
    asks_first,
    can_ask_first,
    declared_arguments,
    declared_resource,
    is_resumable,
    list_components,
    may_be_repeated,
    refusal,
    tool_meta,
)
from mcp_celery.protocol.extension import TasksExtension
from mcp_celery.protocol.host import Polling, TaskHost
from mcp_celery.protocol.in_process import SubmittedTask, submit
from mcp_celery.protocol.install import around, fit, middleware_of, name_subjects
from mcp_celery.protocol.polling import add_polling_tools
from mcp_celery.protocol.revisions import REQUESTING_REVISION, RESULT_VERSION, revision_named
from mcp_celery.protocol.shared_wire import IMMEDIATE_RESPONSE

__all__ = [
    "IMMEDIATE_RESPONSE",
    "REQUESTING_REVISION",
    "RESULT_VERSION",
    "Polling",
    "SubmittedTask",
    "TaskHost",
    "TasksExtension",
    "add_polling_tools",
    "around",
    "asks_first",
    "can_ask_first",
    "declared_arguments",
    "declared_resource",
    "fit",
    "is_resumable",
    "list_components",
    "may_be_repeated",
    "middleware_of",
    "name_subjects",
    "refusal",
    "revision_named",
    "submit",
    "tool_meta",
]
