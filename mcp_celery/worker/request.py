"""A real MCP request context inside a worker, so that a tool cannot tell that its client is elsewhere.

The SDK's ``Context`` reads everything from a ``ServerRequestContext``; that one is rebuilt here from the snapshot of
the creating request, over a dispatch context of our own that has no wire. The connection declares the last version at
which the SDK sends questions as requests; at later versions it would return them. Provisional seams of the SDK, all in
this module: ``Connection.from_envelope``, ``ServerSession(...)``, and the low-level server behind an ``MCPServer``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, Final, cast

import anyio
from mcp.server import MCPServer
from mcp.server.connection import Connection
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.server.extension import RequestHandler, compose_tool_call_handler
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp.server.session import ServerSession
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    INTERNAL_ERROR,
    LOG_LEVEL_META_KEY,
    METHOD_NOT_FOUND,
    CallToolRequestParams,
    CallToolResult,
    InputRequiredResult,
    LoggingLevel,
    RequestId,
    TextContent,
)
from mcp_types import methods as spec_methods
from pydantic import AnyUrl, BaseModel, ValidationError

from mcp_celery.containing import containing
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import ASKABLE, JSONObject
from mcp_celery.errors import ComponentExitedError
from mcp_celery.jsonable import NotJSONError, json_value, text_of
from mcp_celery.worker.asking import Asker
from mcp_celery.worker.caller import headers_of, meta_of
from mcp_celery.worker.progress import ProgressReporter
from mcp_celery.worker.revision import CallerRevision

logger = logging.getLogger(__name__)

NOT_SERIALIZED: Final = "The job's result could not be serialized"


class JobDispatchContext:
    """What the SDK takes for the request's channel: progress and questions go to the task's record."""

    can_send_request = True
    message_metadata = None

    def __init__(self, snapshot: TaskContextSnapshot, progress: ProgressReporter, asker: Asker) -> None:
        self.request_id = snapshot.request_id
        self.transport = TransportContext(kind="mcp-celery", can_send_request=True, headers=headers_of(snapshot))
        self.cancel_requested = anyio.Event()
        self._progress = progress
        self._asker = asker

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        """Ask the task's caller. Other requests are refused, as on any channel that cannot carry them to the client."""
        self._progress.check()
        if method not in ASKABLE:
            raise NoBackChannelError(method)
        return await self._asker.ask(method, dict(params or {}), (opts or {}).get("timeout"))

    async def notify(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,  # noqa: ARG002 - the SDK's protocol
    ) -> None:
        """A log message becomes the task's status message; a task's stream carries no other notification."""
        self._progress.check()
        if method == "notifications/message" and params is not None:
            await self._progress.say(params.get("data"))

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """``ctx.report_progress``."""
        await self._progress.report(progress, total, message)


class _JobSession(ServerSession):
    """The SDK's session, except that log data needs no JSON form.

    In the foreground the SDK drops the data unless its client asks for log messages, so data that only the task makes
    it serialize must not end the component.
    """

    async def send_log_message(
        self, level: LoggingLevel, data: Any, logger: str | None = None, related_request_id: RequestId | None = None
    ) -> None:
        await super().send_log_message(level, text_of(data), logger, related_request_id)  # pyright: ignore[reportDeprecated]


def request_context(
    method: str,
    snapshot: TaskContextSnapshot,
    progress: ProgressReporter,
    asker: Asker,
    lifespan_state: Any,
    *,
    asking_version: str,
) -> ServerRequestContext[Any, Any]:
    """The context that the server's handlers run with.

    Args:
        method: MCP method, for example ``tools/call``.
        snapshot: The creating request and its context.
        progress: Where progress and messages go.
        asker: Where questions go.
        lifespan_state: What the server's lifespan yielded in this process.
        asking_version: The protocol version at which the SDK sends questions as requests.
    """
    channel = JobDispatchContext(snapshot, progress, asker)
    # Only the caller's own version reads the state of rounds that were answered before.
    version = snapshot.protocol_version if "requestState" in snapshot.params else asking_version
    connection = Connection.from_envelope(version, snapshot.client_info, snapshot.client_capabilities, outbound=channel)
    return ServerRequestContext(
        # Log messages become the task's message, at every version.
        session=_JobSession(channel, connection, request_meta=cast(Any, {LOG_LEVEL_META_KEY: "debug"})),
        lifespan_context=lifespan_state,
        protocol_version=version,
        method=method,
        params=snapshot.params,
        request_id=snapshot.request_id,
        meta=meta_of(snapshot),
        request=None if (headers := headers_of(snapshot)) is None else SimpleNamespace(headers=headers),
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
    server: MCPServer[Any],
    ctx: ServerRequestContext[Any, Any],
    progress: ProgressReporter,
    *,
    revision: CallerRevision,
    let_through: tuple[type[Exception], ...],
) -> JSONObject | InputRequiredResult:
    """Serve a request with the handler that serves it in the foreground, extensions' interceptors included.

    Args:
        server: Whose component runs.
        ctx: From :func:`request_context`.
        progress: The same as its.
        revision: The caller's, for which the result is shaped.
        let_through: Exceptions of the component that are not made a result of.

    Returns:
        The wire result, or what the component needs before it can give one.

    Raises:
        MCPError: The request ended in a JSON-RPC error, or its result cannot be delivered; or the component raised
            something that would have ended the worker.
        ComponentRaised: The component raised one of ``let_through``.
        asyncio.CancelledError: The job was cancelled.
    """
    entry = lowlevel(server).get_request_handler(ctx.method)
    if entry is None:
        raise MCPError(METHOD_NOT_FOUND, f"This server does not serve {ctx.method}")
    params = entry.params_type.model_validate(ctx.params or {}, by_name=False)
    handler = _tool_handler(server, progress, let_through) if ctx.method == "tools/call" else entry.handler
    try:
        with containing(f"the component of {ctx.method}", cancelled=lambda: progress.abandoned):
            result = await handler(ctx, params)
    except ComponentRaised:
        raise
    except ComponentExitedError as error:
        raise MCPError(error.code, str(error)) from None
    except Exception as error:
        if (reason := _in_chain(error, let_through)) is not None:
            raise ComponentRaised(reason) from None
        if isinstance(error, MCPError):
            raise
        logger.exception("%s raised", ctx.method)
        raise revision.crash(_text(error)) from error
    try:
        if spec_methods.is_input_required(result):
            return InputRequiredResult.model_validate(result, by_name=False)
        dumped = (
            result.model_dump(by_alias=True, mode="json", exclude_none=True)
            if isinstance(result, BaseModel)
            else cast(JSONObject, result)
        )
        return spec_methods.serialize_server_result(ctx.method, revision.version, dumped)
    except Exception as error:  # serializers of user code raise anything
        logger.exception("could not serialize the result of %s", ctx.method)
        raise MCPError(INTERNAL_ERROR, NOT_SERIALIZED) from error


def error_data(error: MCPError, revision: CallerRevision) -> Any:
    """The data of an error as JSON values.

    Args:
        error: The error.
        revision: The caller's, which says what is left out of the models in it.

    Raises:
        NotJSONError: It has no JSON form.
    """
    try:
        dumped = revision.dump_error(error.error)
    except Exception:  # noqa: BLE001 - serializers of user code raise anything
        raise NotJSONError(error.data) from None
    return json_value(dumped.get("data"))


def _text(error: Exception) -> str:
    """The text of an exception of user code, which may fail to give one."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - __str__ of user code raises anything
        return type(error).__name__


class _JobContext(Context[Any, Any]):
    """The SDK's, except that a job that nobody waits for is told so also where it would not use its channel."""

    _progress: ProgressReporter

    def __init__(self, progress: ProgressReporter, **options: Any) -> None:
        super().__init__(**options)
        self._progress = progress

    async def read_resource(self, uri: str | AnyUrl) -> Iterable[ReadResourceContents]:
        self._progress.check()
        return await super().read_resource(uri)


def _tool_handler(
    server: MCPServer[Any], progress: ProgressReporter, let_through: tuple[type[Exception], ...]
) -> RequestHandler:
    """The SDK's handler of ``tools/call``, with a context of ours.

    It does not make a result of an exception in ``let_through``.
    """
    private: Any = server

    async def call(ctx: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> HandlerResult:
        context = _JobContext(
            progress,
            request_context=ctx,
            mcp_server=server,
            input_params=params,
            subscriptions=private._subscriptions,
        )
        try:
            return await server.call_tool(params.name, params.arguments or {}, context)
        except MCPError:
            raise
        except Exception as error:  # noqa: BLE001 - as the SDK: whatever a tool raises is its result
            if (reason := _in_chain(error, let_through)) is not None:
                raise ComponentRaised(reason) from None
            deliberate = isinstance(error, ToolError) and not isinstance(error, UnexpectedToolError)
            log, text = logger.info if deliberate else logger.exception, _text(error)
            # What was wrong with which argument is for the caller: its value is in the text.
            rejected = isinstance(error.__cause__, ValidationError)
            log("Tool %r failed: %r", params.name, "its arguments were rejected" if rejected else text)
            return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)

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
