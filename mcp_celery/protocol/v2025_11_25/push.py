"""Push of revision 2025-11-25: a session is notified of the tasks it created, wherever their jobs run.

Each task is followed by an asyncio task of its own until it has ended, as ``tasks/get`` would show it. Its
questions go over the session's own channel while no request waits for its result. A session's followers belong to its
connection: they hold it weakly, and end when it does.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import weakref
from collections.abc import Awaitable, Callable
from typing import Final

from mcp.server.connection import Connection
from mcp.shared.exceptions import MCPError, NoBackChannelError

from mcp_celery.common.background import BackgroundTasks
from mcp_celery.context import register_task_session
from mcp_celery.engine import Caller, JSONObject, TaskEngine, TaskRecord
from mcp_celery.errors import McpCeleryError, StoreUnavailableError
from mcp_celery.protocol.caller import connection_of, session_of
from mcp_celery.protocol.question_delivery import Channel, Relay, Turns
from mcp_celery.protocol.revision import RequestContext
from mcp_celery.protocol.v2025_11_25.wire import (
    PROGRESS_NOTIFICATION,
    STATUS_NOTIFICATION,
    encode_progress,
    encode_task,
    related_to,
)
from mcp_celery.telemetry.tasks import measure_delivery
from mcp_celery.telemetry.traces import notifying

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 0.5
"""How long a question waits for a ``tasks/result`` to be asked on, before it is asked on the session's own channel."""
PING_SECONDS: Final = 2.0
"""How long a client has to show that it listens on its session's own channel."""
_FOLLOW_AGAIN_SECONDS: Final = 1.0
"""How long a store that did not answer is left alone."""
_PAUSE_SECONDS: Final = 2.0
"""The first pause before a client that did not listen is tried again."""
_LONGEST_PAUSE_SECONDS: Final = 16.0
_FOLLOWERS: Final = "mcp_celery/followers"
"""In ``Connection.state``: the connection's followers."""
_HEARING: Final = "mcp_celery/hearing"
"""In ``Connection.state``: the object that finds out whether the client listens."""


class SessionPush:
    """Tells sessions of their tasks: ``notifications/tasks/status``, and ``notifications/progress`` where asked.

    Args:
        engine: Gives the running event loop's engine.
        turns: Whose turn it is to ask a question.
    """

    def __init__(self, engine: Callable[[], TaskEngine], turns: Turns) -> None:
        self._engine = engine
        self._turns = turns

    def follow(self, ctx: RequestContext, record: TaskRecord, progress_token: str | int | None) -> None:
        """Tell the session of a request of everything that happens to the task it has just created.

        Args:
            ctx: The creating request.
            record: The new task, as the answer to the request shows it.
            progress_token: The creating request's, None where it does not ask for progress.
        """
        session = session_of(ctx)
        if session is None:
            return
        connection = connection_of(ctx)
        register_task_session(session, connection)
        followers: BackgroundTasks | None = connection.state.get(_FOLLOWERS)
        if followers is None:
            followers = connection.state[_FOLLOWERS] = BackgroundTasks(
                logger, "a session gets no further notifications of its task"
            )
            connection.exit_stack.push_async_callback(followers.aclose)
        following = _tell(_OnSession(connection), self._engine(), self._turns, record, progress_token)
        # In a context of its own: a copy of the request's would keep the request alive.
        followers.start(following, name=f"mcp-celery-push-{record.task_id}", context=contextvars.Context())


class _News:
    """The state of a task that a session already has."""

    def __init__(self, channel: _OnSession, created: TaskRecord, token: str | int | None) -> None:
        self._channel = channel
        self._token = token
        self._revision = created.revision  # the client knows it from the answer to its request
        self._progress = float("-inf")

    async def tell(self, record: TaskRecord) -> bool:
        """Send what is new. False: the session has ended."""
        if record.revision <= self._revision:
            return True
        progress = record.progress
        if self._token is not None and progress is not None and progress.value > self._progress:
            self._progress = progress.value
            await self._channel.notify(PROGRESS_NOTIFICATION, encode_progress(record, progress, self._token))
        self._revision = record.revision
        with notifying(record, STATUS_NOTIFICATION):
            is_sent = await self._channel.notify(STATUS_NOTIFICATION, encode_task(record))
        if is_sent:
            measure_delivery(record)
        return is_sent


async def _tell(
    channel: _OnSession, engine: TaskEngine, turns: Turns, created: TaskRecord, token: str | int | None
) -> None:
    """Send what is new of a task, and ask what it wants to know, until it has ended or the session is gone."""
    caller = Caller(created.scope, created.issuer)
    news = _News(channel, created, token)
    meta = related_to(created.task_id)
    async with Relay(
        engine, caller, created.task_id, turns=turns, channel=channel, grace_seconds=GRACE_SECONDS, meta=meta
    ) as relay:
        while channel.is_there:
            try:
                async with engine.watch(caller, [created.task_id], results=False) as watch:
                    async for view in watch:
                        if not await news.tell(view.record):
                            return
                        relay.show(view)
            except StoreUnavailableError as error:
                logger.warning("could not notify a session of its task %s yet: %s", created.shown_id, error)
                await asyncio.sleep(_FOLLOW_AGAIN_SECONDS)
            except McpCeleryError as error:
                logger.warning("could not notify a session of its task %s: %s", created.shown_id, error)
                return
            else:
                return


class _Hearing:
    """Finds out by pings whether a client listens on its session's own channel: one ping at a time, however many
    questions wait, and after a pause that grows.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._times_heard = 0
        self._pause = _PAUSE_SECONDS
        self._hears = True
        self._look_at = 0.0
        self._look_pause = _PAUSE_SECONDS

    async def wait(self, ping: Callable[[], Awaitable[bool]]) -> None:
        """Return when a ping has been answered since this call.

        Args:
            ping: Says whether it was answered.
        """
        before = self._times_heard
        async with self._lock:
            while self._times_heard == before:
                self._hears = await ping()
                if self._hears:
                    self._times_heard += 1
                    self._pause = self._look_pause = _PAUSE_SECONDS
                    self._look_later()
                else:
                    await asyncio.sleep(self._pause)
                    self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    async def is_lost(self, ping: Callable[[], Awaitable[bool]]) -> bool:
        """Whether a client that has been asked no longer answers, as the last ping showed.

        Args:
            ping: Says whether it was answered. Called when the last one is long enough ago.
        """
        if not self._lock.locked() and asyncio.get_running_loop().time() >= self._look_at:
            async with self._lock:
                self._hears = await ping()
                self._look_later()
        return not self._hears

    def _look_later(self) -> None:
        self._look_at = asyncio.get_running_loop().time() + self._look_pause
        self._look_pause = min(2 * self._look_pause, _LONGEST_PAUSE_SECONDS)


class _OnSession(Channel):
    """A session's own channel, for news and for questions.

    Args:
        connection: The session's; it is held weakly.
    """

    may_seem_gone = True

    def __init__(self, connection: Connection) -> None:
        self._session = weakref.ref(connection)
        self._hearing: _Hearing = connection.state.setdefault(_HEARING, _Hearing())

    @property
    def is_there(self) -> bool:
        """Whether the session lives."""
        return self._session() is not None

    @property
    def connection(self) -> Connection | None:
        """The session's."""
        return self._session()

    async def notify(self, method: str, params: JSONObject) -> bool:
        """Send a notification. False: the session has ended."""
        connection = self._session()
        if connection is None:
            return False
        await connection.notify(method, params)
        return True

    async def send(self, method: str, params: JSONObject) -> JSONObject:
        """Ask the client; a session that is gone has no channel."""
        connection = self._session()
        if connection is None:
            raise NoBackChannelError(method)
        return await connection.send_raw_request(method, params)

    async def heard(self) -> None:
        """Wait until the client answers on this channel: over HTTP it need not have opened its stream."""
        await self._hearing.wait(self._ping)

    async def is_gone(self) -> bool:
        """Whether the client no longer answers on this channel: over HTTP a session outlives its client."""
        return await self._hearing.is_lost(self._ping)

    async def _ping(self) -> bool:
        connection = self._session()
        if connection is None:
            return False
        try:
            await connection.ping(opts={"timeout": PING_SECONDS})
        except MCPError:
            return False
        return True
