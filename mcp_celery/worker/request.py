"""A real MCP request context inside a worker, so that a tool cannot tell that its client is elsewhere.

The SDK's ``Context`` reads everything from a ``ServerRequestContext``; that one is rebuilt here from the snapshot of
the creating request, over a dispatch context of our own that has no wire. The connection is declared as 2025-11-25,
because at later revisions the SDK would return questions instead of asking them. Provisional seams of the SDK, all in
this module: ``Connection.from_envelope``, ``ServerSession(...)``, and the low-level server behind an ``MCPServer``.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final, cast

import anyio
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.connection import Connection
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.server.extension import RequestHandler, compose_tool_call_handler
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.session import ServerSession
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    INTERNAL_ERROR,
    METHOD_NOT_FOUND,
    CallToolRequestParams,
    CallToolResult,
    InputRequiredResult,
    TextContent,
)
from mcp_types import methods as spec_methods
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from mcp_celery.context import CallerToken, TaskContextSnapshot
from mcp_celery.engine import JSONObject
from mcp_celery.worker.progress import ProgressReporter

logger = logging.getLogger(__name__)

WORKER_REVISION: Final = "2025-11-25"


class JobDispatchContext:
    """What the SDK takes for the request's channel: progress goes to the task's record, questions have no way yet."""

    can_send_request = False
    message_metadata = None

    def __init__(self, snapshot: TaskContextSnapshot, progress: ProgressReporter) -> None:
        self.request_id = snapshot.request_id
        self.transport = TransportContext(kind="mcp-celery", can_send_request=False, headers=snapshot.headers)
        self.cancel_requested = anyio.Event()
        self._progress = progress

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,  # noqa: ARG002 - the SDK's protocol
        opts: CallOptions | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Refused, as on any channel that cannot carry a request to the client."""
        raise NoBackChannelError(method)

    async def notify(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,  # noqa: ARG002 - the SDK's protocol
    ) -> None:
        """A log message becomes the task's status message; a task's stream carries no other notification."""
        if method == "notifications/message" and params is not None:
            data = params.get("data")
            await self._progress.say(data if isinstance(data, str) else repr(data))

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """``ctx.report_progress``."""
        await self._progress.report(progress, total, message)


def request_context(
    method: str, params: JSONObject, snapshot: TaskContextSnapshot, progress: ProgressReporter, lifespan_state: Any
) -> ServerRequestContext[Any, Any]:
    """The context that the server's handlers run with.

    Args:
        method: MCP method, for example ``tools/call``.
        params: Its parameters.
        snapshot: The creating request's context.
        progress: Where progress and messages go.
        lifespan_state: What the server's lifespan yielded in this process.
    """
    channel = JobDispatchContext(snapshot, progress)
    connection = Connection.from_envelope(
        WORKER_REVISION, snapshot.client_info, snapshot.client_capabilities, outbound=channel
    )
    return ServerRequestContext(
        session=ServerSession(channel, connection, request_meta=None),
        lifespan_context=lifespan_state,
        protocol_version=WORKER_REVISION,
        method=method,
        params=params,
        request_id=snapshot.request_id,
        request=None if snapshot.headers is None else SimpleNamespace(headers=snapshot.headers),
    )


class ComponentRaised(Exception):  # noqa: N818 - an outcome, not an error
    """The component raised an exception that is Celery's business, and no result.

    Args:
        reason: What it raised.
    """

    def __init__(self, reason: Exception) -> None:
        super().__init__(type(reason).__name__)
        self.reason = reason


async def handle(
    server: MCPServer[Any], ctx: ServerRequestContext[Any, Any], revision: str, let_through: tuple[type[Exception], ...]
) -> JSONObject:
    """Serve a request with the handler that serves it in the foreground, extensions' interceptors included.

    Args:
        server: Whose component runs.
        ctx: From :func:`request_context`.
        revision: The caller's protocol revision, for which the result is shaped.
        let_through: Exceptions of the component that are not made a result of.

    Returns:
        The wire result.

    Raises:
        MCPError: The request ended in a JSON-RPC error, or its result cannot be delivered.
        ComponentRaised: The component raised one of ``let_through``.
    """
    entry = lowlevel(server).get_request_handler(ctx.method)
    if entry is None:
        raise MCPError(METHOD_NOT_FOUND, f"This server does not serve {ctx.method}")
    params = entry.params_type.model_validate(ctx.params or {}, by_name=False)
    handler = entry.handler
    if let_through and ctx.method == "tools/call":
        handler = _tool_handler_that_tells(server, let_through)
    try:
        result = await handler(ctx, params)
    except ComponentRaised:
        raise
    except Exception as error:
        if (reason := _in_chain(error, let_through)) is not None:
            raise ComponentRaised(reason) from None
        if isinstance(error, MCPError):
            raise
        # What the SDK's own boundary does: the text of a crash stays in the log.
        logger.exception("%s raised", ctx.method)
        raise MCPError(INTERNAL_ERROR, "Internal server error") from error
    if isinstance(result, InputRequiredResult):
        raise MCPError(INTERNAL_ERROR, "The component asked for input, which a task of this server cannot get")
    try:
        dumped = (
            result.model_dump(by_alias=True, mode="json", exclude_none=True)
            if isinstance(result, BaseModel)
            else cast(JSONObject, result)
        )
        return spec_methods.serialize_server_result(ctx.method, revision, dumped)
    except (PydanticSerializationError, ValidationError, TypeError, ValueError) as error:
        raise MCPError(INTERNAL_ERROR, "The job's result could not be serialized") from error


def _tool_handler_that_tells(server: MCPServer[Any], let_through: tuple[type[Exception], ...]) -> RequestHandler:
    """The SDK's handler of ``tools/call``, except that it does not make a result of an exception in ``let_through``."""
    private: Any = server

    async def call(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> HandlerResult:
        context = Context(
            request_context=ctx, mcp_server=server, input_params=params, subscriptions=private._subscriptions
        )
        try:
            return await server.call_tool(params.name, params.arguments or {}, context)
        except ToolError as error:
            if (reason := _in_chain(error, let_through)) is not None:
                raise ComponentRaised(reason) from None
            log = logger.exception if isinstance(error, UnexpectedToolError) else logger.info
            log("Tool %r failed: %r", params.name, str(error))
            return CallToolResult(content=[TextContent(type="text", text=str(error))], is_error=True)

    return compose_tool_call_handler(private._extensions, call)


def _in_chain(error: BaseException | None, wanted: tuple[type[Exception], ...]) -> Exception | None:
    """The first of ``wanted`` among an exception and those that led to it: the SDK wraps what a component raises."""
    while error is not None:
        if isinstance(error, wanted):
            return error
        error = error.__cause__ or error.__context__
    return None


def lowlevel(server: MCPServer[Any]) -> Any:
    """The low-level server behind an ``MCPServer``. The SDK has no public way to it (2.3.0)."""
    return server._lowlevel_server  # pyright: ignore[reportPrivateUsage]


@contextmanager
def as_caller(token: CallerToken | None) -> Generator[None]:
    """Let ``get_access_token()`` give the caller, its token string empty; None for an anonymous or expired one."""
    user = None
    if token is not None and not token.expired:
        user = AuthenticatedUser(
            AccessToken(
                token="",
                client_id=token.client_id,
                scopes=token.scopes,
                expires_at=token.expires_at,
                subject=token.subject,
                claims=token.claims,
            )
        )
    reset = auth_context_var.set(user)
    try:
        yield
    finally:
        auth_context_var.reset(reset)
