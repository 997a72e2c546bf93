"""Requests that FastMCP does not know, on their way to FastMCP's handlers.

- FastMCP makes typed models of the result of ``initialize``, so what this package adds to it is added last.
- It serves no ``subscriptions/listen``. The SDK's handler serves those that name tasks. It is not registered, because a
  server with that handler declares subscriptions of all kinds.
- A call with ``task`` (2025-11-25) goes through FastMCP's handler of ``tools/call``, so that middleware sees it, and
  meets the extension there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, cast

from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.extension import RequestHandler
from mcp.server.lowlevel.server import Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    CallToolRequestParams,
    CallToolResult,
    SubscriptionsListenRequestParams,
    TextContent,
)
from pydantic import BaseModel

from mcp_celery.fastmcp.private import name_session
from mcp_celery.fastmcp.results import CreatedTask
from mcp_celery.protocol.caller import session_of
from mcp_celery.protocol.shared_wire import LISTEN
from mcp_celery.protocol.v2025_11_25.wire import CreateParams

Handling = ServerRequestContext[Any, Any]

_created_by: ContextVar[TaskCreation | None] = ContextVar("mcp_celery_fastmcp_created_by", default=None)


class AroundInitialize:
    """Middleware outside of FastMCP's, for ``initialize`` alone.

    Args:
        middleware: What runs there, the outermost first.
    """

    def __init__(self, middleware: Sequence[ServerMiddleware[Any]]) -> None:
        self._middleware = middleware

    async def __call__(self, ctx: Handling, call_next: CallNext) -> HandlerResult:
        if ctx.method != "initialize":
            return await call_next(ctx)

        async def dumped(ctx: Handling) -> HandlerResult:
            result = await call_next(ctx)
            if not isinstance(result, BaseModel):
                return result
            return result.model_dump(by_alias=True, mode="json", exclude_none=True)

        return await _through(self._middleware, dumped)(ctx)


class InsideFastMCP:
    """Middleware inside of FastMCP's, for everything but ``initialize``.

    Args:
        middleware: What runs there, the outermost first.
        lowlevel: The server, for requests that none of them answers.
        max_streams: How many streams it may serve at a time.
    """

    def __init__(self, middleware: Sequence[ServerMiddleware[Any]], lowlevel: Server[Any], max_streams: int) -> None:
        self._middleware = middleware
        self._lowlevel = lowlevel
        self._listen = ListenHandler(InMemorySubscriptionBus(), max_subscriptions=max_streams)

    async def __call__(self, ctx: Handling, call_next: CallNext) -> HandlerResult:
        if ctx.method == "initialize":
            return await call_next(ctx)
        if ctx.request_id is not None and (session := session_of(ctx)) is not None:
            name_session(ctx.session, session)

        async def serve(ctx: Handling) -> HandlerResult:
            if ctx.method != LISTEN or self._lowlevel.get_request_handler(LISTEN) is not None:
                return await call_next(ctx)
            if not _names_tasks(ctx.params):
                return await call_next(ctx)
            # This server sends nothing of what else it names, so that is not acknowledged.
            params: dict[str, Any] = {**(ctx.params or {}), "notifications": {}}
            return await self._listen(ctx, SubscriptionsListenRequestParams.model_validate(params, by_name=False))

        return await _through(self._middleware, serve)(ctx)


def _through(middleware: Sequence[ServerMiddleware[Any]], serve: CallNext) -> CallNext:
    for one in reversed(middleware):
        serve = _around(one, serve)
    return serve


def _around(middleware: ServerMiddleware[Any], call_next: CallNext) -> CallNext:
    async def call(ctx: Handling) -> HandlerResult:
        return await middleware(ctx, call_next)

    return call


def _names_tasks(params: Mapping[str, Any] | None) -> bool:
    notifications = (params or {}).get("notifications")
    return isinstance(notifications, Mapping) and "taskIds" in notifications


class TaskCreation:
    """A call with ``task`` on its way through FastMCP.

    Args:
        handler: Makes a task of a request of the private method.
        ctx: The request of the private method.
        params: Its parameters.
    """

    def __init__(self, handler: RequestHandler, ctx: Handling, params: CreateParams) -> None:
        self._handler = handler
        self._ctx = ctx
        self._params = params

    async def call(self, tools_call: RequestHandler) -> HandlerResult:
        """Let FastMCP serve the call.

        Args:
            tools_call: FastMCP's handler.

        Returns:
            The task.

        Raises:
            MCPError: A middleware refused the call, or answered it itself.
        """
        request = self._params.request
        ctx = replace(self._ctx, method="tools/call", params=request)
        token = _created_by.set(self)
        try:
            result = await tools_call(ctx, CallToolRequestParams.model_validate(request, by_name=False))
        finally:
            _created_by.reset(token)
        if isinstance(result, CreatedTask):
            return result.wire
        if isinstance(result, CallToolResult) and result.is_error:
            text = next((one.text for one in result.content if isinstance(one, TextContent)), "The call was refused")
            raise MCPError(INVALID_REQUEST, text)
        raise MCPError(INTERNAL_ERROR, "A middleware of the server answered the call, which asked for a task")

    async def create(self, params: CallToolRequestParams, version: str | None) -> CreatedTask:
        """Make the task.

        Args:
            params: The call as FastMCP's middleware has left it.
            version: The tool's version, None for one without versions.
        """
        request = {**self._params.request, "name": params.name, "arguments": params.arguments or {}}
        made = self._params.model_copy(update={"request": request})
        return CreatedTask(wire=cast("dict[str, Any]", await self._handler(of_version(self._ctx, version), made)))


def task_creation() -> TaskCreation | None:
    """The creation that the running call is a part of, None for a call without ``task``."""
    return _created_by.get()


def of_version(ctx: Handling, version: str | None) -> Handling:
    """A request that names the version of its tool, which a job runs then, also if there is a higher one by then."""
    if version is None:
        return ctx
    meta: dict[str, Any] = {**(ctx.meta or {})}
    return replace(ctx, meta=cast(Any, {**meta, "fastmcp": {**(meta.get("fastmcp") or {}), "version": version}}))
