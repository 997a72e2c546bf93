"""The life of a worker, as recovery sees it: its heartbeat, what a broken connection takes from it, its last words."""

from __future__ import annotations

import asyncio
import logging

from mcp_celery.engine.ports import RecoveryStore, TaskStore
from mcp_celery.engine.reaper import Reaper
from mcp_celery.engine.record import Change, TaskRef
from mcp_celery.engine.recovery import RecoveryPolicy
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.retry import until_store_answers

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
"""How soon a heartbeat follows one that the store did not answer."""


class WorkerLife:
    """What a worker does besides its jobs.

    Args:
        worker: Which one, as in its claims.
        store: What recovery keeps.
        tasks: The records.
        reaper: Of this process.
        policy: How often to beat.
    """

    def __init__(
        self, worker: str, *, store: RecoveryStore, tasks: TaskStore, reaper: Reaper, policy: RecoveryPolicy
    ) -> None:
        self._worker = worker
        self._store = store
        self._tasks = tasks
        self._reaper = reaper
        self._policy = policy

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
        try:
            await self._store.beat(self._worker, self._policy.lease_ms)
        except StoreUnavailableError:
            return False
        except Exception:
            logger.exception("a heartbeat of worker %s failed", self._worker)  # and the next one may not
            return False
        return True

    async def tell(self, ref: TaskRef, change: Change) -> None:
        """Apply a change of a job that has ended, however long the store does not answer."""
        await until_store_answers(lambda: self._tasks.change(ref, change))

    async def take_back(self, before_ms: int) -> None:
        """Let go what the worker had not begun when its connection to the broker broke.

        Celery drops it then, and waits for the broker to deliver it again, which Redis does after an hour.

        Args:
            before_ms: Since when it is connected again; what it claimed since is of the new connection.
        """
        await until_store_answers(lambda: self._reaper.settle(self._worker, "disconnected", before_ms))

    async def end(self) -> None:
        """Decide at once on what the worker had, which has stopped."""
        try:
            await self._store.bury(self._worker)
            await self._reaper.settle(self._worker, "stopped")
        except StoreUnavailableError:
            logger.warning("worker %s could not say that it has stopped; it will be found dead", self._worker)
