"""The tasks methods on one session of the SDK's client, one object that is chosen once for a session (`revisions.py`).

The SDK's provisional seams of the client's side, all in this module: its ``listen()`` cannot name tasks, so it is given
a stand-in for the session that adds ``taskIds`` to the request; work that has to end with the session runs in the
session's own task group, as the SDK's does; and a notification's handler is not told the session, so the session is
asked for its handlers.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar, Final, Protocol, TypeVarTuple, cast

import mcp_types as types
from anyio.abc import TaskGroup
from mcp.client.session import ClientRequestContext, ClientSession
from mcp.client.streamable_http import DEFAULT_MAX_SSE_EVENT_SIZE
from mcp.client.subscriptions import Subscription, listen
from mcp.shared.exceptions import MCPError
from pydantic import Field, TypeAdapter

from mcp_celery.client.tracked_task import FollowedTask
from mcp_celery.client.wire import JSON, MAX_EVENT_BYTES_META, TaskState

REQUEST_SECONDS: Final = 30.0
"""How long a ``tasks/*`` request may take where the client has no ``read_timeout_seconds``."""
MAX_EVENT_BYTES: Final = DEFAULT_MAX_SSE_EVENT_SIZE - 1024
"""The largest notification that every transport takes, the SDK's own over HTTP included, which counts the names of an
event's fields too. A transport that takes more states that by itself: see ``client/http.py``.
"""
_LOST_FOR_GOOD: Final = (types.CONNECTION_CLOSED, "Connection closed")
"""What the SDK answers for the server once a session's transport has ended."""
_UNKNOWN_SESSION: Final = frozenset({"Session not found", "Session terminated"})
"""What servers made with an SDK answer over HTTP where they do not know the session, as after a restart; and what the
SDK's client makes of status 404 alone.
"""
_NOT_FOUND: Final = (types.METHOD_NOT_FOUND, "Not Found")
"""What the SDK's client makes of status 404 alone where there is no session: a proxy answers with it while it knows of
no server.
"""
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
    return error.code in _PERMANENT and (error.code, error.message) != _NOT_FOUND


def is_closed(error: MCPError) -> bool:
    """Whether the session has ended, so that nothing on it can succeed any more."""
    is_unknown = error.code in (types.INVALID_REQUEST, types.REQUEST_TIMEOUT) and error.message in _UNKNOWN_SESSION
    return is_unknown or (error.code, error.message) == _LOST_FOR_GOOD


class TaskStream:
    """A ``subscriptions/listen`` stream that the server has acknowledged.

    Attributes:
        accepted: The tasks that it reports; None where the server did not say anything about tasks.
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


class Questions(Protocol):
    """Has the questions of tasks answered by the client's callbacks."""

    def look(self, task: FollowedTask) -> None:
        """See which questions a task has now."""
        ...

    def take_over(self, task: FollowedTask, keys: Iterable[str]) -> None:
        """Leave questions to the program, which answers them itself."""
        ...


class TaskChannel(ABC):
    """The tasks methods on one session, as the session's revision has them.

    A request that a busy server refuses is sent again when the server says that it may.

    Args:
        session: The client's session.
        busy_seconds: How long to go on with such a request.
    """

    notification: ClassVar[str]
    """The method that reports a task's state."""
    state_type: ClassVar[type[TaskState]]
    """How that notification encodes it."""
    listens: ClassVar[bool]
    """Whether the client has to ask the server to push states."""
    result_type: ClassVar[TypeAdapter[Any]]
    """The result of a task of which only the id is known."""

    def __init__(self, session: ClientSession, *, busy_seconds: float) -> None:
        self.session = session
        self.busy_seconds = busy_seconds
        self._private: Any = session

    @property
    def is_open(self) -> bool:
        """Whether the client's context has not been left."""
        group: TaskGroup | None = self._private._task_group
        return group is not None and not group.cancel_scope.cancel_called

    def start_soon(self, body: Callable[[*Arguments], Awaitable[object]], *arguments: *Arguments) -> None:
        """Run something until the client's context is left. What it raises is logged, and ends nothing else."""
        self._private._task_group.start_soon(_contained, body, *arguments)

    def receives_with(self, handler: object) -> bool:
        """Whether the session has this handler, and no other one, for the notifications that report a task's state."""
        binding = self._private._notification_bindings.get(self.notification)
        return binding is not None and binding.handler is handler

    @property
    def _seconds(self) -> float:
        """How long a request may take."""
        return self._private._session_read_timeout_seconds or REQUEST_SECONDS

    # --- What the revision decides

    @abstractmethod
    def require_tasks(self, task_id: str) -> None:
        """Refuse to look for a task where there can be none.

        Raises:
            TaskError: The session's revision has no tasks.
        """

    @abstractmethod
    def require_requests(self, what: str) -> None:
        """Refuse what needs requests that ask for tasks.

        Args:
            what: What needs them, for the error's text.

        Raises:
            TaskError: The session has no such requests.
        """

    @abstractmethod
    async def request_task(
        self, method: str, params: JSON, ttl: int | None, seconds: float | None
    ) -> TaskState | JSON | None:
        """Send a request that asks for a task.

        Args:
            method: The request's.
            params: Its parameters.
            ttl: How long the server is asked to keep the task, in ms; None: the server's default.
            seconds: How long to wait for the answer; None: as the client has it.

        Returns:
            The task; or the request's result, where the server created no task; None where the request must not ask for
            a task.

        Raises:
            MCPError: The server refused, or the connection failed.
            InvalidTaskError: What the server sent is not a task.
        """

    @abstractmethod
    async def get(self, task_id: str) -> TaskState:
        """``tasks/get``.

        Raises:
            MCPError: The server's refusal, or the connection's failure.
            InvalidTaskError: What the server sent is not a state of this task.
        """

    @abstractmethod
    async def update(self, task_id: str, responses: Mapping[str, Any]) -> None:
        """Answer questions by their keys.

        Raises:
            AnswerError: The revision has no way to.
            MCPError: The server's refusal, or the connection's failure.
            InvalidTaskError: The server did not send an acknowledgement.
        """

    @abstractmethod
    async def cancel(self, task_id: str) -> None:
        """``tasks/cancel``. A task that has ended is left as it is.

        Raises:
            MCPError: The server's refusal, or the connection's failure.
            TaskError: The server does not cancel the task, or did not send a task.
        """

    @abstractmethod
    async def list(self) -> Sequence[TaskState]:
        """The caller's tasks, in the server's order.

        Raises:
            TaskError: The session has no list of tasks, or the server sent something else.
            MCPError: The server's refusal, or the connection's failure.
        """

    @abstractmethod
    def questions(self, recheck: Callable[[str], Awaitable[None]], patience_seconds: float) -> Questions:
        """The object that answers questions of tasks by the client's callbacks.

        Args:
            recheck: Asks for the state of a task.
            patience_seconds: How long to go on sending an answer to a server that cannot be reached.
        """

    # --- What the SDK has for every revision

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
        logger.exception("The tracking of tasks failed")
