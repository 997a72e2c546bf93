"""A real MCP request context inside a worker, so that a tool does not notice that its client is elsewhere.

The SDK's ``Context`` reads everything from a ``ServerRequestContext``; that one is rebuilt here from the snapshot of
the creating request, over a dispatch context of our own that has no wire. The connection declares the last version at
which the SDK sends questions as requests; at later versions it would return them. Provisional seams of the SDK, all in
this module: ``Connection.from_envelope`` and ``ServerSession(...)``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final, cast

import anyio
from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    INTERNAL_ERROR,
    LOG_LEVEL_META_KEY,
    METHOD_NOT_FOUND,
    InputRequiredResult,
    LoggingLevel,
    RequestId,
)
from mcp_types import methods as spec_methods
from pydantic import BaseModel

from mcp_celery.base_exceptions import containing, log_raised, text_of_error
from mcp_celery.common.jsonable import NotJSONError, json_value, text_of
from mcp_celery.components.source import ComponentRaised, ComponentSource, JobRequest
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import ASKABLE, JSONObject
from mcp_celery.errors import ComponentExitedError
from mcp_celery.worker.asking import Asker
from mcp_celery.worker.caller import headers_of, meta_of
from mcp_celery.worker.progress import ProgressReporter
from mcp_celery.worker.revision import CallerRevision

logger = logging.getLogger(__name__)

NOT_SERIALIZED: Final = "The job's result could not be serialized"


class JobDispatchContext:
    """The SDK's channel of the request: progress and questions go to the task's record."""

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
        """A log message becomes the task's status message, and progress the task's; other notifications are dropped."""
        self._progress.check()
        if params is None:
            return
        if method == "notifications/message":
            await self._progress.say(params.get("data"))
        elif method == "notifications/progress":
            await self._progress.report(params.get("progress"), params.get("total"), params.get("message"))

    def is_abandoned(self) -> bool:
        """Whether the job is abandoned: its task has ended, or another attempt counts."""
        return self._progress.abandoned

    def check(self) -> None:
        """Stop a component whose task has ended, as :meth:`JobChannel.check`."""
        self._progress.check()

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
        text = text_of(getattr(data, "msg", data))  # FastMCP's log data, of which the message is for people
        await super().send_log_message(level, text, logger, related_request_id)  # pyright: ignore[reportDeprecated]


def request_context(
    method: str, snapshot: TaskContextSnapshot, channel: JobDispatchContext, lifespan_state: Any, *, asking_version: str
) -> ServerRequestContext[Any, Any]:
    """The context that the server's handlers run with.

    Args:
        method: MCP method, for example ``tools/call``.
        snapshot: The creating request and its context.
        channel: Where progress, messages and questions go.
        lifespan_state: What the server's lifespan yielded in this process.
        asking_version: The protocol version at which the SDK sends questions as requests.
    """
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


async def handle(
    source: ComponentSource,
    ctx: ServerRequestContext[Any, Any],
    channel: JobDispatchContext,
    *,
    revision: CallerRevision,
    let_through: tuple[type[Exception], ...],
) -> JSONObject | InputRequiredResult:
    """Serve a request as the server serves it in the foreground, and shape its result for the caller.

    Args:
        source: The server whose component runs.
        ctx: From :func:`request_context`.
        channel: The same as its.
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
    entry = source.lowlevel.get_request_handler(ctx.method)
    if entry is None:
        raise MCPError(METHOD_NOT_FOUND, f"This server does not serve {ctx.method}")
    params = entry.params_type.model_validate(ctx.params or {}, by_name=False)
    request = JobRequest(ctx, params, entry.handler, channel, let_through)
    try:
        with containing(f"the component of {ctx.method}", cancelled=channel.is_abandoned):
            result = await source.run(request)
    except ComponentRaised:
        raise
    except ComponentExitedError as error:
        raise MCPError(error.code, str(error)) from None
    except Exception as error:
        request.require_result(error)
        if isinstance(error, MCPError):
            raise
        log_raised(logger, "%s raised", ctx.method)
        raise revision.crash(text_of_error(error)) from error
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
        log_raised(logger, "could not serialize the result of %s", ctx.method)
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
