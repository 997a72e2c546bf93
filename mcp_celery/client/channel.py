"""What the tasks extension says on one session of the SDK's client: ``tasks/*``, ``subscriptions/listen``, questions.

The SDK's provisional seams of the client's side, all in this module: its ``listen()`` cannot name tasks, so it is given
a stand-in for the session that adds ``taskIds`` to the request; and work that has to end with the session runs in the
session's own task group, as the SDK's does.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, TypeVarTuple, cast

import mcp_types as types
from anyio.abc import TaskGroup
from mcp.client.session import ClientRequestContext, ClientSession
from mcp.client.streamable_http import DEFAULT_MAX_SSE_EVENT_SIZE
from mcp.client.subscriptions import Subscription, listen
from mcp.shared.exceptions import MCPError
from pydantic import Field, TypeAdapter, ValidationError

from mcp_celery.client.errors import InvalidTaskError
from mcp_celery.client.wire import MAX_EVENT_BYTES_META, AnyResult, TaskRequest, TaskState, parse_task

REQUEST_SECONDS: Final = 30.0
"""How long a ``tasks/*`` request may take where the client has no ``read_timeout_seconds``."""
MAX_EVENT_BYTES: Final = DEFAULT_MAX_SSE_EVENT_SIZE - 1024
"""The largest notification that every transport takes, the SDK's own over HTTP included, which counts the names of an
event's fields too. A transport that takes more states that by itself: see ``client/http.py``.
"""
_TOO_LARGE: Final = re.compile(r"exceeded the \d+ byte limit")
"""In what the SDK's transport, and ours, answer for a server whose answer is larger than they take."""
_LOST_FOR_GOOD: Final = (types.CONNECTION_CLOSED, "Connection closed")
"""What the SDK answers for the server once a session's transport has ended."""
_PERMANENT: Final = frozenset(
    {
        types.INVALID_PARAMS,
        types.INVALID_REQUEST,
        types.METHOD_NOT_FOUND,
        types.HEADER_MISMATCH,
        types.MISSING_REQUIRED_CLIENT_CAPABILITY,
    }
)
_IDS: Final = TypeAdapter(frozenset[str])
_QUESTION: Final[TypeAdapter[types.InputRequest]] = TypeAdapter(
    Annotated[types.InputRequest, Field(discriminator="method")]
)

logger = logging.getLogger(__name__)
Arguments = TypeVarTuple("Arguments")


def is_permanent(error: MCPError) -> bool:
    """Whether asking again would be answered in the same way; everything else may pass, as a restart does."""
    return error.code in _PERMANENT


def is_closed(error: MCPError) -> bool:
    """Whether the session's connection has ended, so that nothing on it can succeed any more."""
    return (error.code, error.message) == _LOST_FOR_GOOD


def is_too_large(error: MCPError) -> bool:
    """Whether the server's answer was larger than the transport takes, as the next one will be."""
    return error.code == types.CONNECTION_CLOSED and _TOO_LARGE.search(error.message) is not None


class TaskStream:
    """A ``subscriptions/listen`` stream that the server has acknowledged.

    Attributes:
        accepted: The tasks of which it tells; None where the server did not say anything about tasks.
    """

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        named = (subscription.honored.model_extra or {}).get("taskIds")
        self.accepted = None if named is None else _IDS.validate_python(named)

    async def end(self) -> None:
        """Wait until the server ends it.

        Raises:
            SubscriptionLost: It broke.
        """
        async for _ in self._subscription:
            pass


class _NamingSession:
    """Stands in for a session: adds the tasks, and the size of an event, to a ``subscriptions/listen`` request."""

    def __init__(self, session: ClientSession, task_ids: Collection[str]) -> None:
        self._session: Any = session
        self._task_ids = task_ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def _stamp(self, data: dict[str, Any], options: Any) -> None:
        data["params"]["notifications"]["taskIds"] = list(self._task_ids)
        data["params"].setdefault("_meta", {})[MAX_EVENT_BYTES_META] = MAX_EVENT_BYTES
        self._session._stamp(data, options)


class TaskChannel:
    """The tasks methods on one session.

    Args:
        session: The client's session.
    """

    def __init__(self, session: ClientSession) -> None:
        self.session = session
        self._private: Any = session

    @property
    def is_open(self) -> bool:
        """Whether the client's context has not been left."""
        group: TaskGroup | None = self._private._task_group
        return group is not None and not group.cancel_scope.cancel_called

    def start_soon(self, body: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
        """Run something until the client's context is left. What it raises is logged, and ends nothing else."""
        self._private._task_group.start_soon(_contained, body, *arguments)

    async def get(self, task_id: str) -> TaskState:
        """``tasks/get``.

        Raises:
            MCPError: The server's refusal, or the connection's failure.
            InvalidTaskError: What the server sent is no state of this task.
        """
        return parse_task(await self._ask("tasks/get", task_id), task_id)

    async def update(self, task_id: str, responses: Mapping[str, Any]) -> None:
        """``tasks/update``: answer questions by their keys.

        Raises:
            MCPError: The server's refusal, or the connection's failure.
            InvalidTaskError: The server's acknowledgement is none.
        """
        await self._ask("tasks/update", task_id, inputResponses=dict(responses))

    async def cancel(self, task_id: str) -> None:
        """``tasks/cancel``.

        Raises:
            MCPError: The server's refusal, or the connection's failure.
            InvalidTaskError: The server's acknowledgement is none.
        """
        await self._ask("tasks/cancel", task_id)

    async def _ask(self, method: str, task_id: str, **params: Any) -> dict[str, Any]:
        request = TaskRequest(method=method, params={"taskId": task_id, **params})
        seconds = self._private._session_read_timeout_seconds or REQUEST_SECONDS
        try:
            answer = await self.session.send_request(request, AnyResult, request_read_timeout_seconds=seconds)
        except TimeoutError as error:  # the transport's own, while it writes
            raise MCPError(types.REQUEST_TIMEOUT, f"Request {method!r} timed out") from error
        except ValidationError:
            raise InvalidTaskError(task_id, f"the server's answer to {method} is no result of MCP") from None
        return answer.model_dump(by_alias=True, mode="json")

    async def dispatch(self, key: str, question: Mapping[str, Any]) -> dict[str, Any] | types.ErrorData:
        """Let the client's own sampling, elicitation or roots callback answer a question.

        Args:
            key: The question's key.
            question: The request as the server sent it.

        Returns:
            The answer as it goes on the wire, or why the callback gave none.

        Raises:
            ValidationError: The server did not send a question.
        """
        request = _QUESTION.validate_python(question, by_name=False)
        meta = request.params.meta if request.params else None
        context = ClientRequestContext(session=self.session, request_id=key, meta=meta)
        answer = await self.session.dispatch_input_request(context, request)
        if isinstance(answer, types.ErrorData):
            return answer
        return answer.model_dump(by_alias=True, mode="json", exclude_none=True)

    @asynccontextmanager
    async def listen(self, task_ids: Collection[str]) -> AsyncGenerator[TaskStream]:
        """Ask the server to push the states of tasks; entering waits for its acknowledgement.

        Raises:
            MCPError: The server refused.
            SubscriptionLost: The stream broke before it was acknowledged.
            ListenNotSupportedError: The connection speaks an earlier revision.
            ValidationError: The server's acknowledgement names no list of ids.
        """
        stand_in = cast(ClientSession, _NamingSession(self.session, task_ids))
        async with listen(stand_in) as subscription:
            yield TaskStream(subscription)


async def _contained(body: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
    try:
        await body(*arguments)
    except Exception:
        logger.exception("Following tasks went wrong")
