"""Revision 2025-11-25 around the SDK's handlers, which know nothing of tasks. Provisional seams of the SDK, all here.

The SDK validates what ``tools/call`` and its like return, and would strip a ``CreateTaskResult``; so a request with
``task`` goes, validated, to a private method. Capabilities and ``execution.taskSupport`` are added to the wire results.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from mcp.server.context import CallNext, HandlerResult
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, METHOD_NOT_FOUND
from mcp_types.methods import validate_client_request
from pydantic import ValidationError

from mcp_celery.engine import JSONObject
from mcp_celery.keys import ASKED_WITH, TaskType
from mcp_celery.protocol.caller import session_of
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.revisions import revision_of
from mcp_celery.protocol.shared_wire import OWN_EXTENSION, OWN_SETTINGS
from mcp_celery.protocol.v2025_11_25.wire import CREATE, VERSION, Augmented, encode_capability


class CoreTasksMiddleware:
    """Middleware for ``MCPServer(middleware=[…])``.

    Args:
        host: The server it speaks for.
    """

    def __init__(self, host: TaskHost) -> None:
        self._host = host

    async def __call__(self, ctx: RequestContext, call_next: CallNext) -> HandlerResult:
        """Serve what this revision has of tasks; everything else passes.

        Raises:
            MCPError: -32601 for the private method; -32602 for a ``task`` of another form.
        """
        if ctx.request_id is None:
            return await call_next(ctx)
        if ctx.method == CREATE:
            raise MCPError(METHOD_NOT_FOUND, "Method not found", CREATE)
        if ctx.method == "initialize":
            return await self._with_capability(ctx, await call_next(ctx))
        if ctx.protocol_version != VERSION:
            return await call_next(ctx)
        if ctx.method == "tools/list":
            return await self._with_task_support(await call_next(ctx))
        task_type = ASKED_WITH.get(ctx.method)
        # Where no component of the type runs as a task the server declares no such tasks, and `task` means nothing.
        if task_type and revision_of(ctx).asks_for_task(ctx) and task_type in await self._host.components.task_types():
            return await call_next(_routed(ctx, task_type))
        return await call_next(ctx)

    async def _with_capability(self, ctx: RequestContext, result: HandlerResult) -> HandlerResult:
        task_types = await self._host.components.task_types()
        if not isinstance(result, dict) or result.get("protocolVersion") != VERSION or not task_types:
            return result
        tasks = encode_capability(task_types, lists=session_of(ctx) is not None)
        # The revision has no extensions, and this place for what it does not know.
        declared = cast(JSONObject, result["capabilities"])
        experimental: JSONObject = {**(declared.get("experimental") or {}), OWN_EXTENSION: dict(OWN_SETTINGS)}
        return {**result, "capabilities": {**declared, "experimental": experimental, "tasks": tasks}}

    async def _with_task_support(self, result: HandlerResult) -> HandlerResult:
        if not isinstance(result, dict):
            return result
        return {**result, "tools": [await self._supporting(tool) for tool in cast("list[JSONObject]", result["tools"])]}

    async def _supporting(self, tool: JSONObject) -> JSONObject:
        config = (await self._host.components.find("tool", tool["name"])).config
        if not config.supports_tasks():
            return tool
        # Where other clients are given a task as well, it is not required that they ask for one.
        support = config.mode if self._host.polling_of(config) is None else "optional"
        return {**tool, "execution": {**tool.get("execution", {}), "taskSupport": support}}


def _routed(ctx: RequestContext, task_type: TaskType) -> RequestContext:
    """The request that asks for a task, as a request of the private method.

    Raises:
        MCPError: -32602 for a ``task`` of another form.
    """
    params = dict(ctx.params or {})
    validate_client_request(ctx.method, ctx.protocol_version, params)
    try:
        Augmented.model_validate(params)
    except ValidationError:
        raise MCPError(INVALID_PARAMS, "task.ttl must be a positive number of milliseconds") from None
    return replace(ctx, method=CREATE, params={"taskType": task_type, "request": params})
