"""The heartbeat of a worker: a thread of the parent, so that no tool, however busy, makes its worker look dead."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from mcp_celery.common.background import BackgroundTasks
from mcp_celery.engine import Change, HandBack, HandedBack, TaskRef, now_ms
from mcp_celery.engine.recovery.worker_lease import WorkerLife
from mcp_celery.engine.store_mark import StoreMark

logger = logging.getLogger(__name__)

Living = Callable[[str, Callable[[], Mapping[str, str]]], AbstractAsyncContextManager[WorkerLife]]
"""Says that a worker lives, and takes part in recovery, while it is open; given the worker's name in claims, and what
gives the components that it advertises.
"""

PATIENCE_SECONDS: Final = 10.0
"""How long a worker's start waits for the first heartbeat, and its end for the thread."""
LAST_WORDS_SECONDS: Final = 5.0


class Heart:
    """Runs on an event loop of its own.

    Args:
        living: Entered when it starts, left when it stops.
    """

    def __init__(self, living: Living) -> None:
        self._living = living
        self._mark = secrets.token_hex(4)
        self._hostname: str | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._beating = threading.Event()
        self._life: WorkerLife | None = None
        self._advertised: Mapping[str, str] = {}
        self._work = BackgroundTasks(logger, "the heartbeat of this worker could not carry out an update")
        self._pid = 0
        self._named_by = 0

    def name(self, hostname: str) -> None:
        """Note the worker's node name, before its pool forks: jobs of a worker within tests get the machine's."""
        self._hostname = hostname
        self._named_by = os.getpid()

    @property
    def is_in_child(self) -> bool:
        """Whether this is a child of the process that runs the heartbeat, and that process lives."""
        return self._named_by not in (0, os.getpid()) and os.getppid() == self._named_by

    def worker_id(self, hostname: str) -> str:
        """A worker's name in claims: its node name, and a mark of this process, which its successor does not have."""
        return f"{self._hostname or hostname}/{self._mark}"

    def start(self, hostname: str, unread_ms: Callable[[], Awaitable[int]], slots: Callable[[], int]) -> None:
        """Start to beat; returns when the first heartbeat is stored, or the store does not answer.

        Args:
            hostname: The worker's node name.
            unread_ms: As :attr:`WorkerLife.unread_ms`.
            slots: As :attr:`WorkerLife.slots`.
        """
        self._pid = os.getpid()
        self._stopping, self._life = asyncio.Event(), None
        self._beating.clear()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(self.worker_id(hostname), unread_ms, slots)),
            name="mcp-celery-heart",
            daemon=True,
        )
        self._thread.start()
        if not self._beating.wait(PATIENCE_SECONDS):
            logger.warning("the first heartbeat takes longer than %.0f s", PATIENCE_SECONDS)

    def stop(self) -> None:
        """Say the last words and end the thread. Does nothing in a child of the process that started it."""
        thread, loop = self._thread, self._loop
        if thread is None or loop is None or self._pid != os.getpid():
            return
        self._thread = None
        loop.call_soon_threadsafe(self._stopping.set)
        thread.join(PATIENCE_SECONDS)
        if thread.is_alive():
            logger.warning("the heartbeat did not end within %.0f s", PATIENCE_SECONDS)

    @property
    def store_mark(self) -> StoreMark | None:
        """The mark of the store that this worker uses; None while it is not known, and where the store has none."""
        return None if self._life is None else self._life.store_mark()

    @property
    def beaten_at(self) -> float | None:
        """When the last heartbeat was attempted, in seconds since the epoch; None before the first."""
        return None if self._life is None else self._life.beaten_at

    @property
    def is_stored(self) -> bool:
        """Whether the store took the last heartbeat."""
        return self._life is not None and self._life.is_stored

    @property
    def is_store_away(self) -> bool:
        """Whether the store did not take the last heartbeat."""
        return self.beaten_at is not None and not self.is_stored

    def reconnected(self) -> None:
        """Say that the connection to the broker was lost, and is there again."""
        before_ms = now_ms()
        self._soon(lambda life: life.take_back(before_ms))

    def advertise(self, components: Mapping[str, str]) -> None:
        """Advertise the components whose jobs this worker takes from now on, with this and each further heartbeat.

        Args:
            components: By fingerprint.
        """
        self._advertised = components
        self._soon(lambda life: life.advertise())

    def publish_later(self, key: str, pause_ms: int) -> bool:
        """Publish a job that was handed back after a pause.

        Args:
            key: Compound key of its task.
            pause_ms: The pause.

        Returns:
            False: Not here, for this is a child of the process with the heartbeat; the reaper does, some seconds later.
        """
        return self._soon(lambda life: life.publish_later(key, pause_ms))

    def hand_back_later(self, ref: TaskRef, handback: HandBack, then: Callable[[HandedBack], None]) -> bool:
        """Hand a job back as soon as the store answers.

        Args:
            ref: The task.
            handback: The delivery.
            then: Called with what became of it, on the heartbeat's thread.

        Returns:
            False: Not here, for this is a child of the process with the heartbeat, or the heartbeat has failed.
        """
        return self._soon(lambda life: life.hand_back(ref, handback, then))

    def tell_later(self, ref: TaskRef, change: Change) -> bool:
        """Have a change applied as soon as the store answers.

        Returns:
            False: Not here, for this is a child of the process with the heartbeat.
        """
        return self._soon(lambda life: life.tell(ref, change))

    def claim_later(self, claim: Callable[[], object], at_ms: int) -> bool:
        """Have a job claimed as soon as the store answers, unless the connection that it came by is lost before.

        Args:
            claim: Does so, and blocks.
            at_ms: When the worker received it.

        Returns:
            False: Not here, for this is a child of the process with the heartbeat, or the heartbeat has ended.
        """
        return self._soon(lambda life: life.claim(claim, at_ms))

    def _soon(self, work: Callable[[WorkerLife], Coroutine[Any, Any, None]]) -> bool:
        if self._loop is None or self._thread is None or self._pid != os.getpid():
            return False
        try:
            self._loop.call_soon_threadsafe(self._begin, work)
        except RuntimeError:  # the loop is closed: the heartbeat has failed, and has logged it
            return False
        return True

    def _begin(self, work: Callable[[WorkerLife], Coroutine[Any, Any, None]]) -> None:
        if self._life is not None:
            self._work.start(work(self._life), name="mcp-celery-heart")

    async def _live(self, worker: str, unread_ms: Callable[[], Awaitable[int]], slots: Callable[[], int]) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            async with self._living(worker, lambda: self._advertised) as self._life:
                self._life.unread_ms, self._life.slots = unread_ms, slots
                await self._life.beat()  # the first heartbeat did not know them
                self._beating.set()
                await self._stopping.wait()
                # A store that does not answer now is not waited for.
                await self._work.aclose(LAST_WORDS_SECONDS)
        except Exception:
            logger.exception("the heartbeat of this worker has failed; the reaper will treat its jobs as lost")
            raise
        finally:
            self._beating.set()
