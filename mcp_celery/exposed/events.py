"""Celery's events as hints to read a job's result at once. Workers that send none (no ``-E``) are polled only."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from celery import Celery

from mcp_celery.engine.watcher import Watcher
from mcp_celery.keys import task_key_from_job_id

logger = logging.getLogger(__name__)

_TELLING: Final = ("task-started", "task-succeeded", "task-failed", "task-retried", "task-revoked")
PAUSE_SECONDS: Final = 5.0
"""How long a broker that cannot be listened to is left alone."""
CHECK_SECONDS: Final = 0.5
"""How often it is asked whether there is something to listen for."""
DRAIN_SECONDS: Final = 0.25
"""How soon a listener ends that is told to."""
STOP_SECONDS: Final = 5.0


class JobEvents:
    """Listens to the events of all workers while exposed jobs are open, on a connection and in a thread of its own.

    Args:
        app: Whose broker is listened to.
        watcher: Who is given the hints, and says whether a job is open.
    """

    def __init__(self, app: Celery, watcher: Watcher) -> None:
        self._app = app
        self._watcher = watcher
        self._failed = False

    async def run(self) -> None:
        """Listen whenever there is something to listen for, until cancelled."""
        while True:
            if not self._watcher.watches:
                await asyncio.sleep(CHECK_SECONDS)
                continue
            listener = _Listener(self._app, self._hinting())
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
        while self._watcher.watches and listener.is_alive():  # noqa: ASYNC110 - two conditions, one of a thread
            await asyncio.sleep(CHECK_SECONDS)

    def _hinting(self) -> Callable[[str], None]:
        loop = asyncio.get_running_loop()

        def hint(job_id: str) -> None:
            if (key := task_key_from_job_id(job_id)) is not None and not loop.is_closed():
                loop.call_soon_threadsafe(self._watcher.hint, key)

        return hint

    def _say(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            logger.warning("Celery's events cannot be heard, so exposed jobs are polled only: %s", type(error).__name__)


class _Listener:
    """One try to listen."""

    def __init__(self, app: Celery, hint: Callable[[str], None]) -> None:
        self._app = app
        self._hint = hint
        self._receiver: Any = None
        self._stopping = threading.Event()
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._listen, name="mcp-celery-events", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    async def stop(self) -> None:
        """Let the thread end."""
        self._stopping.set()
        if self._receiver is not None:
            self._receiver.should_stop = True
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, STOP_SECONDS)

    def _listen(self) -> None:
        try:
            with self._app.connection_for_read() as connection:
                connection.connect()  # once; a channel would try for ever
                handlers = dict.fromkeys(_TELLING, self._hear)
                self._receiver = receiver = self._app.events.Receiver(connection, handlers=handlers)
                receiver.should_stop = self._stopping.is_set()
                for _ in receiver.consume(limit=None, timeout=None, safety_interval=DRAIN_SECONDS, wakeup=False):
                    pass
        except Exception as error:  # noqa: BLE001 - transports raise their libraries' own errors, with no common root
            self.error = error

    def _hear(self, event: dict[str, Any]) -> None:
        job_id: object = event.get("uuid")
        if isinstance(job_id, str):
            self._hint(job_id)
