"""Additions of single revisions to a server: request methods that only they have, and middleware."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mcp.server.context import ServerMiddleware
from mcp.server.extension import MethodBinding

from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.v2025_11_25.handlers import CoreTasks
from mcp_celery.protocol.v2025_11_25.middleware import CoreTasksMiddleware
from mcp_celery.protocol.v2026_07_28.handlers import TaskUpdates
from mcp_celery.protocol.v2026_07_28.push import TaskPush


def added_methods(host: TaskHost) -> Sequence[MethodBinding]:
    """The request methods, each bound to its revision."""
    return [*CoreTasks(host).methods(), *TaskUpdates(host).methods()]


def added_middleware(host: TaskHost) -> Sequence[ServerMiddleware[Any]]:
    """The middleware, the outermost first; each lets requests of other revisions pass."""
    return [CoreTasksMiddleware(host), TaskPush(host)]
