"""Limits on running jobs with a real worker and store, which are killed while jobs of the worker have the places."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import pytest

from mcp_celery import TaskConfig
from mcp_celery.engine import TaskRecord
from tests.integration.conftest import TOOLS, Starter, settings_for
from tests.support.live import ANYONE, Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool
from tests.support.servers import tools

pytestmark = pytest.mark.anyio

TWO_AT_A_TIME = TaskConfig(max_running=2)


def places(live: LiveServer) -> list[str]:
    """The keys of limits, and of tasks that wait for a place."""
    with live.redis() as client:
        root = f"{live.settings.key_prefix}:{live.tasks.namespace}"
        found = cast("Iterable[str]", client.scan_iter(match=f"{root}:running:*"))
        return [*found, *cast("list[str]", client.zrange(f"{root}:waiting", 0, -1))]


async def message(live: LiveServer, record: TaskRecord) -> str | None:
    """What the owner of a task reads."""
    return (await live.engine.status(ANYONE, record.task_id)).status_message


@pytest.mark.smoke
async def test_jobs_that_wait_hold_no_slot_and_a_killed_worker_leaks_no_place(
    own: Starter, own_store: EmbeddedStoreContainer, pool: Pool, gate: Gate
) -> None:
    settings = settings_for(own_store, "places", heartbeat_ms=300)
    first = own.worker(TOOLS, pool, settings, concurrency=3)
    async with live_server(tools.build, settings) as live:
        running = [await live.submit("hold", {"gate": str(gate)}, config=TWO_AT_A_TIME) for _ in range(2)]
        await gate.reached(2)
        waiting = [await live.submit("hold", {"gate": str(gate)}, config=TWO_AT_A_TIME) for _ in range(3)]
        for record in waiting:
            await live.becomes(record, lambda now: now.waits_in is not None, "it waits for a place")
        assert [await message(live, record) for record in waiting] == [
            f"Waiting for a free place ({ahead} ahead)" for ahead in range(3)
        ]
        assert await live.text_of("add", {"a": 1, "b": 1}) == "2", "the third slot is free"
        first.kill_all()
        own_store.crash()
        own_store.start()
        for record in running:
            assert (await live.end_of(record)).record.status == "failed"
        # Their places are those of the oldest tasks now, though no worker is there to start them.
        assert (await live.now(waiting[2])).waits_in is not None
        own.worker(TOOLS, pool, settings, concurrency=3)
        await gate.reached(4)
        assert await message(live, waiting[2]) == "Waiting for a free place (0 ahead)"
        gate.open()
        for record in waiting:
            assert (await live.end_of(record)).record.status == "completed"
        assert len(gate.arrived()) == 5
        assert places(live) == []
