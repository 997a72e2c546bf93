"""Turns of callers with a real worker and store, which are killed while tasks wait for their turns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast

import pytest

from mcp_celery.engine import Caller, TaskRecord
from tests.integration.conftest import TOOLS, Starter, settings_for
from tests.support.live import Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool
from tests.support.servers import tools

pytestmark = pytest.mark.anyio

A: Final = Caller("client|a", "https://issuer.example", requestor="a")
B: Final = Caller("client|b", "https://issuer.example", requestor="b")


def kept(live: LiveServer) -> list[str]:
    """The keys of turns, and the tasks that wait."""
    with live.redis() as client:
        root = f"{live.settings.key_prefix}:{live.tasks.namespace}"
        found = cast("Iterable[str]", client.scan_iter(match=f"{root}:turns*"))
        return [*found, *cast("list[str]", client.zrange(f"{root}:waiting", 0, -1))]


async def in_turn(live: LiveServer, gate: Gate, caller: Caller, number: int) -> list[TaskRecord]:
    return [await live.submit("hold", {"gate": str(gate)}, caller=caller) for _ in range(number)]


@pytest.mark.smoke
async def test_callers_take_turns_and_no_task_is_lost_when_everything_is_killed(
    own: Starter, own_store: EmbeddedStoreContainer, pool: Pool, gate: Gate
) -> None:
    settings = settings_for(own_store, "turns", heartbeat_ms=300, fair="scope")
    first = own.worker(TOOLS, pool, settings, concurrency=2)
    async with live_server(tools.build, settings) as live:
        mine = await in_turn(live, gate, A, 6)
        yours = await in_turn(live, gate, B, 1)
        await gate.reached(2)
        for record in (*mine[3:], *yours):
            assert (await live.now(record)).waits_in is not None, "the broker has 1.25 jobs for each of 2 slots"
        ahead = (await live.engine.status(A, mine[5].task_id)).status_message
        assert ahead == "Waiting for a free place (2 ahead)"
        first.kill_all()
        own_store.crash()
    # The server is gone too. What starts next is a worker alone: it publishes what has its turn.
    own_store.start()
    own.worker(TOOLS, pool, settings, concurrency=2)
    await gate.reached(4)
    async with live_server(tools.build, settings) as live:
        for record in mine[:2]:
            assert (await live.end_of(record)).record.status == "failed", "it was running, and may not be repeated"
        # The third one was with the broker. Of those that waited, each caller's oldest has had the next turn.
        assert [(await live.now(one)).waits_in is None for one in mine[2:]] == [True, True, False, False]
        assert (await live.now(yours[0])).waits_in is None
        gate.open()
        for record in (*mine[2:], *yours):
            assert (await live.end_of(record)).record.status == "completed"
        assert len(gate.arrived()) == 2 + 5, "each job that was held back has run once"
        assert kept(live) == []
