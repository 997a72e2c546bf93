"""Celery's events as hints to read a job's result at once, and to know that it has begun.

Workers that send none (no ``-E``) are polled only.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from celery import Celery

from mcp_celery.broker.publisher import bounded
from mcp_celery.common.background import ended
from mcp_celery.engine.foreign.poller import Watcher
from mcp_celery.engine.foreign.started import Beginnings
from mcp_celery.keys import task_key_from_job_id

logger = logging.getLogger(__name__)

_STARTED: Final = "task-started"
_TELLING: Final = (_STARTED, "task-succeeded", "task-failed", "task-retried", "task-revoked")
PAUSE_SECONDS: Final = 5.0
"""How long a broker that cannot be listened to is left alone."""
CHECK_SECONDS: Final = 0.5
"""How often it is asked whether there is something to listen for."""
DRAIN_SECONDS: Final = 0.25
"""How soon a listener ends after it was asked to, in seconds."""
LINGER_SECONDS: Final = 30.0
"""How long a listener goes on when there is nothing to listen for: the next job may come soon."""
ANSWER_SECONDS: Final = 1.0
"""How long the broker may take to answer."""
STOP_SECONDS: Final = 3.0
"""How long a listener's end is waited for. One on a broker that does not answer may take longer, and ends by itself."""
MAX_BEGUN: Final = 10_000
"""How many jobs that began may wait to be noted; of further ones the result is read only."""


class JobEvents:
    """Listens to the events of all workers while exposed jobs are open, on a connection and in a thread of its own.

    Args:
        app: Whose broker is listened to.
        watcher: Who is given the hints, and says whether a job is open.
        beginnings: Who notes that a job has begun.
    """

    def __init__(self, app: Celery, watcher: Watcher, beginnings: Beginnings) -> None:
        self._app = app
        self._watcher = watcher
        self._beginnings = beginnings
        self._begun: asyncio.Queue[str] = asyncio.Queue(MAX_BEGUN)
        self._failed = False

    async def run(self) -> None:
        """Listen whenever there is something to listen for, until cancelled."""
        noting = asyncio.create_task(self._note(), name="mcp-celery-events-begun")
        try:
            while True:
                await self._listen()
        finally:
            await ended(noting)

    async def _listen(self) -> None:
        if not self._watcher.watches:
            await asyncio.sleep(CHECK_SECONDS)
            return
        listener = _Listener(self._app, self._hearing())
        try:
            await self._while_watching(listener)
        finally:
            await listener.stop()
        if listener.error is None:
            self._failed = False
        else:
            self._say(listener.error)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _while_watching(self, listener: _Listener) -> None:
        loop = asyncio.get_running_loop()
        watched = loop.time()
        while listener.is_alive() and loop.time() <= watched + LINGER_SECONDS:
            await asyncio.sleep(CHECK_SECONDS)
            if self._watcher.watches:
                watched = loop.time()

    async def _note(self) -> None:
        while True:
            key = await self._begun.get()
            try:
                await self._beginnings.note(key)
            except Exception:
                logger.exception("could not record the start of a job")  # and the next one's may
            self._watcher.hint(key)  # not before: there would be no result yet, and it would seem too late

    def _hearing(self) -> Callable[[str, str], None]:
        loop = asyncio.get_running_loop()

        def hear(kind: str, job_id: str) -> None:
            if (key := task_key_from_job_id(job_id)) is not None and not loop.is_closed():
                loop.call_soon_threadsafe(self._heard, kind, key)

        return hear

    def _heard(self, kind: str, key: str) -> None:
        if kind == _STARTED and not self._begun.full():
            self._begun.put_nowait(key)
        else:
            self._watcher.hint(key)

    def _say(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            name = type(error).__name__
            logger.warning("could not receive Celery's events, so exposed jobs are only polled: %s", name)


class _Listener:
    """One try to listen."""

    def __init__(self, app: Celery, hear: Callable[[str, str], None]) -> None:
        self._app = app
        self._hear = hear
        self._receiver: Any = None
        self._stopping = threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._listen, name="mcp-celery-events", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    async def stop(self) -> None:
        """Let the thread end. One that does not in time has the error that its broker does not answer."""
        self._stopping.set()
        if self._receiver is not None:
            self._receiver.should_stop = True
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, STOP_SECONDS)
        if self._thread.is_alive():
            self.error = TimeoutError()

    def _listen(self) -> None:
        try:
            with bounded(self._app.connection_for_read(), ANSWER_SECONDS) as connection:
                connection.connect()  # once; a channel would try for ever
                handlers = dict.fromkeys(_TELLING, self._take)
                self._receiver = receiver = self._app.events.Receiver(connection, handlers=handlers)
                receiver.connect_max_retries = 1  # it listens on a connection like this one, which it opens itself
                receiver.should_stop = self._stopping.is_set()
                for _ in receiver.consume(limit=None, timeout=None, safety_interval=DRAIN_SECONDS, wakeup=False):
                    pass
        except Exception as error:  # noqa: BLE001 - transports raise their libraries' own errors, with no common root
            self.error = error

    def _take(self, event: dict[str, Any]) -> None:
        job_id: object = event.get("uuid")
        if isinstance(job_id, str):
            self._hear(str(event.get("type")), job_id)
