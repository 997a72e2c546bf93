"""The wire: which requests become tasks, how tasks are shown, and how changes are pushed."""

from mcp_celery.protocol.components import accepts_arguments, declared_resource, list_components
from mcp_celery.protocol.extension import TaskHost, TasksExtension
from mcp_celery.protocol.install import around, fit
from mcp_celery.protocol.push import TaskPush

__all__ = [
    "TaskHost",
    "TaskPush",
    "TasksExtension",
    "accepts_arguments",
    "around",
    "declared_resource",
    "fit",
    "list_components",
]
