"""Asks clients the questions of tasks by requests, as revisions before 2026-07-28 do.

A question is asked on one channel at a time: a request that the client waits on, or its session's own channel. The
channel that asks it has its turn; when that channel is gone, the next one has it. Only questions that the record says
are open are asked.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, ClassVar, Final, Self
from weakref import WeakSet, WeakValueDictionary

import anyio
from mcp.server.connection import Connection
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.message import ServerMessageMetadata
from mcp_types import CONNECTION_CLOSED, INVALID_PARAMS, ClientCapabilities, Request, Result
from pydantic import ConfigDict, ValidationError

from mcp_celery.common.background import BackgroundTasks
from mcp_celery.engine import Answer, Caller, JSONObject, RpcError, TaskEngine, TaskView, missing_capability
from mcp_celery.engine.retry import until_store_answers
from mcp_celery.errors import (
    AnswersTooLargeError,
    InvalidAnswerError,
    McpCeleryError,
    TaskNotFoundError,
    TooManyLookupsError,
)
from mcp_celery.logs import shown_task_id
from mcp_celery.protocol.caller import connection_of, has_left
from mcp_celery.protocol.revision import RequestContext


class Turn:
    """Whose turn it is to ask one question.

    Attributes:
        lock: Held by the channel that asks it.
        silent: Connections whose client has the question, and answers nothing: it is gone, or its person thinks.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.silent: WeakSet[Connection] = WeakSet()


class Turns:
    """One turn for each question."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[tuple[str, str], Turn] = WeakValueDictionary()

    def of(self, task_id: str, key: str) -> Turn:
        """The turn that a channel takes before it asks a question.

        Args:
            task_id: The task that asks.
            key: The question's key.
        """
        turn = self._turns.get((task_id, key))
        if turn is None:
            turn = self._turns[task_id, key] = Turn()
        return turn


logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 1.0
"""How often it is looked whether a client that has been asked is still there."""
_DELIVERY_SECONDS: Final = 30.0
"""How long what a client wants waits for a store that does not take it."""

_LOST_FOR_GOOD: Final = (CONNECTION_CLOSED, "Connection closed")
"""What the SDK answers for a client whose channel has ended; the code alone is one that clients use too."""


class Channel(ABC):
    """One way to a client."""

    may_seem_gone: ClassVar[bool] = False
    """Whether a client that seems gone may be there: the SDK before 2.0 answers nothing while a person thinks."""

    @property
    def connection(self) -> Connection | None:
        """The connection that it belongs to, None where there is none, or no longer."""
        return None

    @abstractmethod
    async def send(self, method: str, params: JSONObject) -> JSONObject:
        """Send a request to the client.

        Returns:
            Its result.

        Raises:
            MCPError: The error that the client answered with, or that the channel is closed.
            NoBackChannelError: There is no channel.
            ValidationError: The answer is no result.
        """

    def can_ask(self, request: JSONObject) -> bool:  # noqa: ARG002 - for channels that depend on it
        """Whether the client can be asked a request, as it declared."""
        return True

    async def heard(self) -> None:  # noqa: B027 - who waits for an answer hears at once
        """Wait until the client listens on the channel; called before each question."""

    async def is_gone(self) -> bool:
        """Whether the client has left without a word, asked while a question is out."""
        return False


class OnRequest(Channel):
    """The client that waits for the answer to a request, to be asked on that request's own stream.

    Args:
        ctx: The request.
    """

    def __init__(self, ctx: RequestContext) -> None:
        self._ctx = ctx

    @property
    def connection(self) -> Connection | None:
        """The request's."""
        return connection_of(self._ctx)

    async def send(self, method: str, params: JSONObject) -> JSONObject:
        """Ask it."""
        on_this_request = ServerMessageMetadata(related_request_id=self._ctx.request_id)
        request: Any = _Question(method=method, params=params)  # the SDK names only the requests it knows
        answer = await self._ctx.session.send_request(request, _Reply, metadata=on_this_request)
        return answer.model_dump(by_alias=True, mode="json", exclude_unset=True)

    async def is_gone(self) -> bool:
        """Whether it has dropped that stream."""
        return await has_left(self._ctx)

    def can_ask(self, request: JSONObject) -> bool:
        """Whether it declared that it can; it need not be the client that made the task."""
        declared = self._ctx.session.client_capabilities or ClientCapabilities()
        _name, missing = missing_capability(declared, request["method"], request.get("params", {}))
        return missing is None


class _Question(Request[JSONObject, str]):
    """A request of a task to its client."""

    params: JSONObject


class _Reply(Result):
    """The client's answer in any form: the engine checks it."""

    model_config = ConfigDict(extra="allow")


class Relay:
    """Asks what one task wants to know, on one channel; a context manager, which stops asking at its end.

    Args:
        engine: Takes the answers.
        caller: Who answers.
        task_id: The task.
        turns: Whose turn it is.
        channel: Where it is asked.
        grace_seconds: How long other channels may come first.
        meta: What is added to the ``_meta`` of each question, so that the client knows which task asks.
    """

    def __init__(
        self,
        engine: TaskEngine,
        caller: Caller,
        task_id: str,
        *,
        turns: Turns,
        channel: Channel,
        grace_seconds: float = 0.0,
        meta: JSONObject | None = None,
    ) -> None:
        self._engine = engine
        self._caller = caller
        self._task_id = task_id
        self._turns = turns
        self._channel = channel
        self._grace_seconds = grace_seconds
        self._meta = meta
        self._work = BackgroundTasks(logger, "the delivery of a question failed")
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._delivering: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        asking = tuple(self._asking.values())
        for task in asking:
            task.cancel()
        # Answers that have arrived are delivered, although the channel of the question is gone.
        with anyio.CancelScope(shield=True):
            await asyncio.gather(*asking, *self._delivering, return_exceptions=True)

    def show(self, view: TaskView) -> None:
        """Ask the task's new questions, and withdraw those that it no longer has.

        What the client cannot be asked is left to other channels.
        """
        wanted = {key: request for key, request in view.input_requests.items() if self._channel.can_ask(request)}
        for key in self._asking.keys() - wanted.keys():
            self._asking.pop(key).cancel()
        for key in [key for key in wanted if key not in self._asking]:
            task = self._work.start(self._ask(key, wanted[key]), name=f"mcp-celery-ask-{self._task_id}")
            self._asking[key] = task
            task.add_done_callback(self._delivering.discard)

    async def _ask(self, key: str, request: JSONObject) -> None:
        await asyncio.sleep(self._grace_seconds)
        await self._channel.heard()
        turn = self._turns.of(self._task_id, key)
        async with asyncio.TaskGroup() as group, AsyncExitStack() as held:
            await held.enter_async_context(turn.lock)
            connection = self._channel.connection
            if connection in turn.silent or not await self._is_open(key):
                return  # where its client has the question, a second request would ask its person twice
            answering = group.create_task(self._answer_to(request))
            if await self._is_gone_before(answering):
                if connection is not None and self._channel.may_seem_gone:
                    turn.silent.add(connection)
                await held.aclose()  # the next channel has its turn; an answer that still comes here counts too
            answer = await answering
            if answer is None:
                return
            # The answer closes the question, and what is closed is taken back; but not what is on its way.
            self._delivering.add(self._asking.pop(key))
            await self._deliver(key, answer)

    async def _is_gone_before(self, answering: asyncio.Task[Answer | None]) -> bool:
        """Wait for an answer. True: the client went before it gave one."""
        while not answering.done():
            await asyncio.wait([answering], timeout=_LOOK_SECONDS)
            if not answering.done() and await self._channel.is_gone():
                return True
        return False

    async def _is_open(self, key: str) -> bool:
        """Whether it is still without an answer after another channel had its turn, as soon as the store can say so."""
        while True:
            try:
                view = await until_store_answers(
                    lambda: self._engine.get(self._caller, self._task_id, read_result=False)
                )
            except TooManyLookupsError as error:  # of other tasks; this one is asked for when the caller may again
                await asyncio.sleep((error.retry_after_ms or 0) / 1000 + _LOOK_SECONDS)
            except McpCeleryError:
                return False  # it has ended, or is gone; a record that cannot be read is in the log
            else:
                return key in view.input_requests

    async def _answer_to(self, request: JSONObject) -> Answer | None:
        """The client's answer; None where this channel does not reach it."""
        params: JSONObject = request.get("params", {})
        if self._meta:
            params = {**params, "_meta": {**params.get("_meta", {}), **self._meta}}
        try:
            return await self._channel.send(request["method"], params)
        except NoBackChannelError:
            return None
        except MCPError as error:
            is_closed = (error.code, error.message) == _LOST_FOR_GOOD
            return None if is_closed else RpcError(error.code, error.message, error.data)
        except ValidationError:
            return RpcError(INVALID_PARAMS, f"The client's answer is no result of {request['method']}")

    async def _deliver(self, key: str, answer: Answer) -> None:
        try:
            await until_taken(lambda: give(self._engine, self._caller, self._task_id, key, answer))
        except TaskNotFoundError:
            logger.info("dropped an answer to task %s, which is gone", shown_task_id(self._caller.scope, self._task_id))
        except TimeoutError:
            shown = shown_task_id(self._caller.scope, self._task_id)
            logger.warning("lost an answer to task %s: the task store does not answer", shown)


async def until_taken(attempt: Callable[[], Awaitable[object]]) -> None:
    """Try for a while until the store answers.

    Raises:
        TimeoutError: It did not.
    """
    with anyio.fail_after(_DELIVERY_SECONDS):
        await until_store_answers(attempt)


async def give_back(engine: TaskEngine, caller: Caller, task_id: str, responses: Mapping[str, Answer]) -> None:
    """Give a task the answers that came back with a request; keys that no open question has are ignored.

    Raises:
        TaskNotFoundError: Unknown, expired, or another caller's.
        ResultUnavailableError: It has completed, but the result backend does not give the result.
        StoreUnavailableError: The store did not answer.
    """
    for key in (await engine.get(caller, task_id)).input_requests:
        if key in responses:
            await give(engine, caller, task_id, key, responses[key])


async def give(engine: TaskEngine, caller: Caller, task_id: str, key: str, answer: Answer) -> None:
    """Give a task the answer of a client that will not be asked again: where it cannot be taken, the tool learns it.

    Raises:
        TaskNotFoundError: Unknown, expired, or another caller's.
        StoreUnavailableError: The store did not answer.
    """
    try:
        await engine.respond(caller, task_id, {key: answer})
    except (InvalidAnswerError, AnswersTooLargeError) as error:
        shown = shown_task_id(caller.scope, task_id)
        logger.warning("refused an answer from the client of task %s: %s", shown, error)
        await engine.respond(caller, task_id, {key: RpcError(error.code, str(error))})
