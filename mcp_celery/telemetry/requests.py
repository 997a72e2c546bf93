"""The middleware that measures requests and notifications: ``mcp.server.operation.duration``.

Source: OpenTelemetry's semantic conventions for MCP (semantic-conventions-genai, development status). The spans of
requests are made by the SDK.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult
from pydantic import ValidationError

from mcp_celery.keys import METHODS, TaskType
from mcp_celery.telemetry.instruments import OTHER, REQUEST, is_measured
from mcp_celery.telemetry.tasks import MOST_NAMES, BoundedNames

logger = logging.getLogger(__name__)

IsDeclared = Callable[[TaskType, str], Awaitable[bool]]
"""Says whether the server has a component of a kind and name."""

_NAMED: Final[dict[str, tuple[TaskType, str]]] = {
    METHODS["tool"]: ("tool", "gen_ai.tool.name"),
    METHODS["prompt"]: ("prompt", "gen_ai.prompt.name"),
}
"""The methods whose component is a label, and which label."""
_METHODS: Final = frozenset(
    {
        *METHODS.values(),
        *("initialize", "ping", "logging/setLevel", "completion/complete", "server/discover", "subscriptions/listen"),
        *("tools/list", "prompts/list", "resources/list", "resources/templates/list"),
        *("resources/subscribe", "resources/unsubscribe"),
        *("tasks/get", "tasks/list", "tasks/cancel", "tasks/result", "tasks/update"),
        *("notifications/initialized", "notifications/cancelled", "notifications/progress"),
        *("notifications/roots/list_changed", "notifications/elicitation/complete", "notifications/tasks/status"),
    }
)
_versions: Final = BoundedNames(20)
"""The SDK serves the versions that it knows, which are fewer."""


class MeasuredRequests:
    """Middleware, the outermost.

    Args:
        is_declared: Says which names are labels; any other is :data:`~mcp_celery.telemetry.instruments.OTHER`.
    """

    def __init__(self, is_declared: IsDeclared) -> None:
        self._is_declared = is_declared
        self._known: set[tuple[TaskType, str]] = set()

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Measure a request, however it ends."""
        if not is_measured():
            return await call_next(ctx)
        began = time.perf_counter()
        error_type: str | None = None
        try:
            result = await call_next(ctx)
            if ctx.method == METHODS["tool"] and _is_tool_error(result):
                error_type = "tool_error"
        except MCPError as error:
            error_type = _code(error.error.code)
            raise
        except ValidationError:
            error_type = str(INVALID_PARAMS)
            raise
        except BaseException as error:
            error_type = type(error).__name__
            raise
        finally:
            seconds = time.perf_counter() - began
            REQUEST(seconds, await self._labels(ctx, error_type))
        return result

    async def _labels(self, ctx: ServerRequestContext[Any, Any], error_type: str | None) -> dict[str, str | bool]:
        labels: dict[str, str | bool] = {
            "mcp.method.name": ctx.method if ctx.method in _METHODS else OTHER,
            "mcp.protocol.version": _versions.label(ctx.protocol_version),
        }
        if error_type is not None:
            labels["error.type"] = error_type
        if ctx.method in _NAMED:
            task_type, label = _NAMED[ctx.method]
            labels[label] = await self._name(task_type, (ctx.params or {}).get("name"))
        return labels

    async def _name(self, task_type: TaskType, name: object) -> str:
        """The label of a component's name. Names are asked about once."""
        if not isinstance(name, str):
            return OTHER
        if (task_type, name) in self._known:
            return name
        if len(self._known) >= MOST_NAMES:
            return OTHER
        try:
            if not await self._is_declared(task_type, name):
                return OTHER
        except Exception as error:  # noqa: BLE001 - a registry of the user's; the request has its own answer
            logger.debug("could not ask whether there is a %s of a request: %s", task_type, type(error).__name__)
            return OTHER
        self._known.add((task_type, name))
        return name


def _is_tool_error(result: object) -> bool:
    match result:
        case CallToolResult(is_error=True) | {"isError": True}:
            return True
        case _:
            return False


def _code(code: int) -> str:
    """The label of a JSON-RPC error code. A tool may raise one of its own, so only those of MCP's ranges are kept."""
    return str(code) if -32_768 <= code <= -32_000 else OTHER
