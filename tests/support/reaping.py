"""A process that reaps in a test's own event loop, over any storage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from mcp_celery.engine.followup_jobs import as_itself
from mcp_celery.engine.recovery.due_jobs import DueJobs
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.testing import MemoryTaskQueue
from tests.support.worlds import World


class NoResults:
    """A result backend in which nothing is."""

    async def forget(self, job_ids: Sequence[str]) -> None:
        """Nothing is there."""


@asynccontextmanager
async def publishing(world: World) -> AsyncGenerator[MemoryTaskQueue]:
    """A process that reaps, once a minute, and publishes at a hint."""
    queue = MemoryTaskQueue()
    reaper = Reaper(
        store=world.recovery(),
        tasks=world.store,
        queue=queue,
        results=NoResults(),
        declared=as_itself,
        policy=RecoveryPolicy(heartbeat_ms=60_000, max_redeliveries=1),
    )
    work = [asyncio.create_task(one) for one in (reaper.run(), DueJobs(reaper, world.bus).run())]
    try:
        await asyncio.wait_for(reaper.elected.wait(), 10)
        yield queue
    finally:
        for one in work:
            one.cancel()
        await asyncio.gather(*work, return_exceptions=True)
