"""The wire: which requests become tasks, how tasks are shown, and how changes are pushed."""

from mcp_celery.protocol.extension import TaskHost, TasksExtension
from mcp_celery.protocol.push import TaskPush

__all__ = ["TaskHost", "TaskPush", "TasksExtension"]
