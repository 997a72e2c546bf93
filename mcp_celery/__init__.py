"""MCP task requests become Celery jobs."""

from mcp_celery.composition import CeleryTasks
from mcp_celery.config import TaskConfig, TaskMeta
from mcp_celery.context import (
    TaskContext,
    TaskContextSnapshot,
    get_task_context,
    get_task_scope,
    get_task_server,
    get_task_session_id,
)
from mcp_celery.errors import McpCeleryError
from mcp_celery.host_app import install
from mcp_celery.protocol import SubmittedTask
from mcp_celery.server import TaskServer
from mcp_celery.settings import Settings

__all__ = [
    "CeleryTasks",
    "McpCeleryError",
    "Settings",
    "SubmittedTask",
    "TaskConfig",
    "TaskContext",
    "TaskContextSnapshot",
    "TaskMeta",
    "TaskServer",
    "get_task_context",
    "get_task_scope",
    "get_task_server",
    "get_task_session_id",
    "install",
]
