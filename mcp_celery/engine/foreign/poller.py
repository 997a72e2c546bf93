"""The poller: reads the results of exposed jobs, whose workers report nothing to the record, and updates their tasks.

Servers share the open tasks: the first server that asks for those that are due has them for one interval. When a server
dies with some, the others take them at the next interval; another server means no more reads. A change goes through the
store, which announces it like every other, so a subscriber gets it on whichever server it is connected to.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from mcp_celery.engine.foreign.states import ExposedTasks
from mcp_celery.engine.ports import OpenTasks
from mcp_celery.engine.read_models import StoredTask
from mcp_celery.engine.reconcile import Settling
from mcp_celery.engine.record import TaskRecord
from mcp_celery.errors import McpCeleryError, StoreUnavailableError, TaskNotFoundError

logger = logging.getLogger(__name__)

BATCH_TASKS: Final = 500
"""How many tasks are taken up at a time."""
BATCH_JOBS: Final = 100
"""How many results are read at a time: few enough for a backend that gives them one by one."""
HURRY_SECONDS: Final = 0.05
"""How long hints are gathered before they are followed."""


class Watcher:
    """Reads the results of exposed jobs, many at a time.

    Args:
        tasks: Which are open.
        exposed: Who reads the results of their jobs.
        settling: Where changes go.
        interval_ms: How often a task's results are read, at least.
    """

    def __init__(self, tasks: OpenTasks, exposed: ExposedTasks, settling: Settling, interval_ms: int) -> None:
        self._tasks = tasks
        self._exposed = exposed
        self._settling = settling
        self._interval_ms = interval_ms
        self._hints: set[str] = set()
        self._hinted = asyncio.Event()
        self.watches = False
        """Whether some task was open at the last look."""

    def hint(self, key: str) -> None:
        """A task, given by its compound key, may have changed."""
        self._hints.add(key)
        self._hinted.set()

    async def run(self) -> None:
        """Watch for ever. A store or a result backend that does not answer is asked again and again."""
        while True:
            try:
                more = await self.look()
            except StoreUnavailableError:
                more = False
            except Exception:
                logger.exception("could not read the results of exposed jobs")  # and the next time they may
                more = False
            if not more:
                await self._wait()

    async def _wait(self) -> None:
        """Until the interval is over, or a hint has come."""
        try:
            async with asyncio.timeout(self._interval_ms / 1000):
                await self._hinted.wait()
            await asyncio.sleep(HURRY_SECONDS)
        except TimeoutError:
            return

    async def look(self) -> bool:
        """Look at what is due.

        Returns:
            Whether there was more than a batch.

        Raises:
            StoreUnavailableError: The store did not answer.
        """
        hints, self._hints = self._hints, set[str]()
        self._hinted.clear()
        if hints:
            await self._tasks.hurry(list(hints))
        due = await self._tasks.due(self._interval_ms, BATCH_TASKS)
        self.watches = due.open > 0
        batch: list[TaskRecord] = []
        jobs = 0
        for record in due.records:
            batch.append(record)
            jobs += record.work.parts
            if jobs >= BATCH_JOBS:
                if not await self._settle(batch):
                    return False
                batch, jobs = [], 0
        if batch:
            await self._settle(batch)
        return len(due.records) >= BATCH_TASKS

    async def _settle(self, records: Sequence[TaskRecord]) -> bool:
        """Settle tasks. False: the result backend answered for none of them."""
        found = await self._exposed.read(records)
        for record, results in zip(records, found, strict=True):
            if results is None:
                continue  # it has been logged, and is asked again
            try:
                await self._settling.settle(StoredTask(record), results)
            except StoreUnavailableError:
                raise
            except TaskNotFoundError:
                logger.debug("task %s expired while its results were read", record.shown_id)
            except McpCeleryError as error:
                logger.error("could not record the outcome of the job of task %s: %s", record.shown_id, error)
            except Exception:
                # One task whose result cannot be converted must not keep the others waiting.
                logger.exception("could not record the outcome of the job of task %s", record.shown_id)
        return any(results is not None for results in found)
