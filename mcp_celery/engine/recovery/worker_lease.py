"""The life of a worker, as recovery sees it: its heartbeat, what a broken connection takes from it, its last words."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from mcp_celery.engine.handback import HandBack, HandedBack
from mcp_celery.engine.ports import RecoveryStore, TaskStore
from mcp_celery.engine.record import Change, TaskRef
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.engine.retry import until_store_answers
from mcp_celery.engine.store_mark import StoreMark
from mcp_celery.errors import StoreUnavailableError

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
"""How soon a heartbeat follows one that the store did not answer."""


def unknown_slots() -> int:
    """A worker that does not say how many jobs it can run at a time."""
    return 0


async def none_unread() -> int:
    """A worker that reads each message when it comes."""
    return 0


class WorkerLife:
    """The background duties of a worker: heartbeats, and storing delayed changes.

    Args:
        worker: Which one, as in its claims.
        store: What recovery keeps.
        tasks: The records.
        reaper: Of this process.
        policy: How often to beat.
        components: Gives the fingerprints that the worker advertises with each heartbeat, and whose they are.
        store_mark: Gives the mark of the store, as it was found last.

    Attributes:
        store_mark: As given.
        unread_ms: Tells for how long the worker may have messages that it has not read, in ms; 0: it has none.
        slots: Tells how many jobs the worker can run at a time; 0: that is not known.
        beaten_at: When the last heartbeat was attempted, in seconds since the epoch.
        is_stored: Whether the store took it.
    """

    def __init__(
        self,
        worker: str,
        *,
        store: RecoveryStore,
        tasks: TaskStore,
        reaper: Reaper,
        policy: RecoveryPolicy,
        components: Callable[[], Mapping[str, str]] = dict,
        store_mark: Callable[[], StoreMark | None] = lambda: None,
    ) -> None:
        self.store_mark = store_mark
        self._components = components
        self._worker = worker
        self._store = store
        self._tasks = tasks
        self._reaper = reaper
        self._policy = policy
        self.unread_ms: Callable[[], Awaitable[int]] = none_unread
        self.slots: Callable[[], int] = unknown_slots
        self.beaten_at: float | None = None
        self.is_stored = False
        self._reconnected_ms = 0
        self._claiming: set[asyncio.Future[None]] = set()

    async def run(self) -> None:
        """Beat for ever. A store that does not answer is asked again and again."""
        while True:
            pause = self._policy.heartbeat_ms / 1000
            await asyncio.sleep(pause if await self.beat() else min(pause, AGAIN_SECONDS))

    async def beat(self) -> bool:
        """Beat once.

        Returns:
            False: The store did not answer.
        """
        self.is_stored = await self._beat()
        self.beaten_at = time.time()
        return self.is_stored

    async def _beat(self) -> bool:
        try:
            await self._store.beat(
                self._worker,
                self._policy.lease_ms,
                self._components(),
                unread_ms=await self.unread_ms(),
                slots=self.slots(),
            )
        except StoreUnavailableError:
            return False
        except Exception:
            logger.exception("a heartbeat of worker %s failed", self._worker)  # and the next one may not
            return False
        return True

    async def advertise(self) -> None:
        """Beat at once, because the worker advertises other components than before."""
        await self.beat()

    async def hand_back(self, ref: TaskRef, handback: HandBack, then: Callable[[HandedBack], None]) -> None:
        """Hand a job back, however long the store does not answer.

        Args:
            ref: The task.
            handback: The delivery.
            then: Called with what became of it.

        Raises:
            StoredDataError: The task's record cannot be used.
        """
        handed = await until_store_answers(lambda: self._tasks.hand_back(ref, handback))
        then(handed)
        if handed.verdict == "handed back":
            await self.publish_later(handback.key, handed.pause_ms)

    async def publish_later(self, key: str, pause_ms: int) -> None:
        """Publish a job that is due after a pause. If this worker cannot, the reaper does, some seconds later.

        Args:
            key: Compound key of the task.
            pause_ms: The pause.
        """
        await asyncio.sleep(pause_ms / 1000)
        try:
            await self._reaper.publish_due(key)
        except StoreUnavailableError:
            logger.warning(
                "could not publish a job that was handed back: the store does not answer; the reaper publishes it later"
            )

    async def tell(self, ref: TaskRef, change: Change) -> None:
        """Apply a change of a job that has ended, however long the store does not answer."""
        await until_store_answers(lambda: self._tasks.change(ref, change))

    async def claim(self, claim: Callable[[], object], at_ms: int) -> None:
        """Note that the worker has a job, however long the store does not answer.

        A job that the worker received before its connection to the broker broke is not claimed any more: Celery has
        dropped it. Where its body begins nevertheless, the start claims it.

        Args:
            claim: Does so, and blocks.
            at_ms: When the worker received it.
        """

        def claim_unless_dropped() -> None:
            if at_ms >= self._reconnected_ms:
                claim()

        async def attempt() -> None:
            claiming = asyncio.ensure_future(asyncio.to_thread(claim_unless_dropped))
            self._claiming.add(claiming)
            claiming.add_done_callback(self._claiming.discard)
            await claiming

        await until_store_answers(attempt)

    async def take_back(self, before_ms: int) -> None:
        """Release the jobs that the worker had not begun when its connection to the broker broke.

        Celery drops it then, and waits for the broker to deliver it again, which Redis does after an hour.

        Args:
            before_ms: When it connected again; what it has claimed since belongs to the new connection.
        """
        self._reconnected_ms = max(self._reconnected_ms, before_ms)
        if self._claiming:
            await asyncio.wait(set(self._claiming))  # the store may note them after it was asked for the claims
        await until_store_answers(lambda: self._reaper.settle(self._worker, "disconnected", before_ms))

    async def end(self) -> None:
        """Decide at once on what the worker had, which has stopped."""
        try:
            # The worker is forgotten last: the reaper looks for the claims of known workers only.
            await self._reaper.settle(self._worker, "stopped")
            await self._store.bury(self._worker)
        except StoreUnavailableError:
            logger.warning("could not record that worker %s has stopped; the reaper will find it dead", self._worker)
