"""One server over any storage, and the workers that start its jobs: what tests of waiting tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from mcp_celery import TaskConfig
from mcp_celery.engine import Caller, Change, Claim, EncodedResult, Start, TaskEngine, TaskRecord, now_ms
from mcp_celery.engine.places import NoPlaceError
from tests.support.waiting import eventually
from tests.support.worlds import RedisWorld, World, a_submission

WORKER: Final = "celery@host/1"


class OneServer:
    """Creates, starts and ends tasks.

    Args:
        world: The storage.
        engine: The server's.
    """

    def __init__(self, world: World, engine: TaskEngine) -> None:
        self.world = world
        self.engine = engine

    async def create(self, caller: Caller, config: TaskConfig, **values: Any) -> TaskRecord:
        """Create a task. Each is a millisecond younger than the one before, so that their order is certain."""
        made = await self.engine.submit(replace(a_submission(caller, config=config), **values))
        await eventually(lambda: now_ms() > made.created_at_ms)
        return made

    async def now(self, record: TaskRecord) -> TaskRecord:
        found = await self.world.store.load(record.ref)
        assert found is not None
        return found.record

    async def ahead_of(self, record: TaskRecord, *, retries: int) -> int | None:
        """Start the current attempt of a task's job.

        Returns:
            None where it runs; else how many tasks are before it.
        """
        attempt = (await self.now(record)).attempt
        assert self.world.ledger.claim(record.ref, attempt=attempt, retries=retries, claim=Claim(WORKER, now_ms()))
        try:
            started = await self.world.store.start(
                record.ref, Start(attempt=attempt, retries=retries, at_ms=now_ms(), worker=WORKER)
            )
        except NoPlaceError as full:
            return full.ahead
        assert started is not None
        return None

    async def end(self, record: TaskRecord) -> None:
        """End a task with a result, as a worker does."""
        change = Change(to="completed", attempt=(await self.now(record)).attempt)
        result = EncodedResult(f"result-{record.task_id}", '["SUCCESS", null]')
        if isinstance(self.world, RedisWorld):
            result = replace(result, key=f"{self.world.prefix}:{result.key}")
        assert await self.world.store.finish(record.ref, change, result)

    def due(self, records: Sequence[TaskRecord]) -> list[int]:
        """Which of several tasks go on, by their places."""
        return [number for number, record in enumerate(records) if self.world.is_due(record.ref)]
