"""Push on ``subscriptions/listen`` with ``taskIds``: the current state of each task, then every change.

The SDK's own handler serves the stream: its limits, the core notification kinds, its graceful end. It is given a
session that adds ``taskIds`` to the acknowledgement; a sibling of it sends the tasks on the same stream. Provisional
seams of the SDK, all in this module: the middleware, and the stand-in for ``ServerSession``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import anyio
from mcp.server.context import CallNext, HandlerResult
from mcp.server.mcpserver.server import require_client_extension
from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp_types import (
    INVALID_PARAMS,
    RequestId,
    ServerNotification,
    SubscriptionFilter,
    SubscriptionsAcknowledgedNotification,
)
from pydantic import ValidationError
from pydantic.type_adapter import TypeAdapter

from mcp_celery.engine import Caller, TaskView, TaskWatch
from mcp_celery.protocol.caller import as_rpc_errors, caller_of_request
from mcp_celery.protocol.host import TaskHost
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.shared_wire import EXTENSION, LISTEN
from mcp_celery.protocol.v2026_07_28.wire import (
    MAX_EVENT_BYTES_META_KEY,
    VERSIONS,
    TaskNotification,
    encode_detailed,
)
from mcp_celery.telemetry.tasks import measure_delivery
from mcp_celery.telemetry.traces import notifying

logger = logging.getLogger(__name__)

_TASK_IDS = TypeAdapter(list[str])


class _AcknowledgingSession:
    """Stands in for the stream's session, and adds the accepted task ids to the acknowledgement."""

    def __init__(self, session: ServerSession, task_ids: list[str]) -> None:
        self._session = session
        self._task_ids = task_ids
        self.acknowledged = anyio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def send_notification(
        self, notification: ServerNotification, related_request_id: RequestId | None = None
    ) -> None:
        if isinstance(notification, SubscriptionsAcknowledgedNotification):
            honored = notification.params.notifications.model_dump(by_alias=True, exclude_none=True)
            notification.params.notifications = SubscriptionFilter.model_validate(
                {**honored, "taskIds": self._task_ids}, by_name=False
            )
        await self._session.send_notification(notification, related_request_id)
        self.acknowledged.set()


class TaskPush:
    """Middleware for ``MCPServer(middleware=[…])``.

    Args:
        host: The server it speaks for.
    """

    def __init__(self, host: TaskHost) -> None:
        self._host = host

    async def __call__(self, ctx: RequestContext, call_next: CallNext) -> HandlerResult:
        """Serve ``subscriptions/listen`` requests that name tasks; everything else passes. All of them are counted.

        Raises:
            MCPError: -32021 when the request does not declare the extension; -32602 for ids of another form or too many
                of them; -32005 when the caller has too many streams, or has asked for too many tasks that are not
                there; -32603 when the store does not answer.
        """
        if ctx.method != LISTEN or ctx.protocol_version not in VERSIONS or ctx.request_id is None:
            return await call_next(ctx)
        task_ids = _task_ids(ctx.params, self._host.max_listen_tasks)
        if task_ids is not None:
            require_client_extension(ctx, EXTENSION)
        caller = caller_of_request(ctx)
        with ExitStack() as place:
            with as_rpc_errors():
                place.enter_context(self._host.engine().streams.place_for(caller))
            if task_ids is None:
                return await call_next(ctx)
            return await self._follow(ctx, call_next, caller, task_ids)

    async def _follow(
        self, ctx: RequestContext, call_next: CallNext, caller: Caller, task_ids: list[str]
    ) -> HandlerResult:
        engine = self._host.engine()
        with as_rpc_errors(), engine.pending.place_for(caller):
            watch = engine.watch(caller, task_ids)
            await watch.__aenter__()
        try:
            return await self._serve(ctx, call_next, watch)
        finally:
            with anyio.CancelScope(shield=True):
                await watch.__aexit__(None, None, None)

    async def _serve(self, ctx: RequestContext, call_next: CallNext, watch: TaskWatch) -> HandlerResult:
        session = _AcknowledgingSession(ctx.session, watch.accepted)

        largest = _largest_event(ctx, self._host.max_push_bytes)

        async def tell() -> None:
            await session.acknowledged.wait()
            async for view in watch:
                notification = _notification(view, ctx.request_id)
                if (size := _size(notification)) > largest:
                    # A client that cannot take an event breaks the stream of all its tasks off.
                    logger.info(
                        "did not push the state of task %s: it has %d bytes, more than the %d that one event may "
                        "have; its client gets it by polling",
                        view.record.shown_id,
                        size,
                        largest,
                    )
                    continue
                with notifying(view.record, notification.method):
                    await ctx.session.send_notification(cast(Any, notification), ctx.request_id)
                measure_delivery(view.record)

        result: HandlerResult = None
        refusal: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(tell)
            try:
                # The stream outlives its last task: it ends when the client closes it, or the server shuts down.
                result = await call_next(replace(ctx, session=cast(ServerSession, session)))
            except Exception as error:  # noqa: BLE001 - raised below: the group would wrap it
                refusal = error
            group.cancel_scope.cancel()
        if refusal is not None:
            raise refusal
        return result


def _largest_event(ctx: RequestContext, default: int) -> int:
    """How many bytes of JSON one notification may have: what the client announces, else the server's setting."""
    announced = (ctx.meta or {}).get(MAX_EVENT_BYTES_META_KEY)
    if isinstance(announced, int) and not isinstance(announced, bool) and announced > 0:
        return announced
    return default


def _size(notification: TaskNotification) -> int:
    """Bytes of a notification's parameters as the SDK writes them to the stream: JSON in ASCII (2.3.0)."""
    return len(json.dumps(notification.params))


def _notification(view: TaskView, subscription_id: RequestId | None) -> TaskNotification:
    params = encode_detailed(view)
    params["_meta"] = {**params.get("_meta", {}), SUBSCRIPTION_ID_META_KEY: subscription_id}
    return TaskNotification(params=params)


def _task_ids(params: Mapping[str, Any] | None, most: int) -> list[str] | None:
    """``notifications.taskIds``, None where the request names none.

    Raises:
        MCPError: -32602.
    """
    notifications = (params or {}).get("notifications")
    if not isinstance(notifications, Mapping) or "taskIds" not in notifications:
        return None
    try:
        task_ids = _TASK_IDS.validate_python(cast("Mapping[str, Any]", notifications)["taskIds"], strict=True)
    except ValidationError:
        raise MCPError(INVALID_PARAMS, "notifications.taskIds must be a list of strings") from None
    if len(task_ids) > most:
        raise MCPError(INVALID_PARAMS, f"notifications.taskIds names more than {most} tasks")
    return task_ids
