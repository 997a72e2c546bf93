"""MCP task requests become Celery jobs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
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
    from mcp_celery.server.celery_tasks import CeleryTasks
    from mcp_celery.server.task_server import TaskServer
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

_MODULES: Final = {
    "CeleryTasks": "server.celery_tasks",
    "McpCeleryError": "errors",
    "Settings": "settings",
    "SubmittedTask": "protocol",
    "TaskConfig": "config",
    "TaskContext": "context",
    "TaskContextSnapshot": "context",
    "TaskMeta": "config",
    "TaskServer": "server.task_server",
    "get_task_context": "context",
    "get_task_scope": "context",
    "get_task_server": "context",
    "get_task_session_id": "context",
    "install": "host_app",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: a host's processes that only call ``install`` load no MCP SDK."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
