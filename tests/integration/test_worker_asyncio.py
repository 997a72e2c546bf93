"""What only the asyncio pool promises: many jobs in one process, and no job that stalls the others."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.integration.conftest import TOOLS, Starter, lines, settings_for
from tests.support.live import Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer
from tests.support.servers import crowd, tools
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

PAUSE_SECONDS = 2.0


@pytest.fixture(params=[300], ids=["300 slots"])
async def live(
    own: Starter, own_store: EmbeddedStoreContainer, request: pytest.FixtureRequest
) -> AsyncGenerator[LiveServer]:
    settings = settings_for(own_store, "crowd", store_timeout_ms=20_000, publish_timeout_ms=20_000)
    own.worker("tests.support.servers.crowd:server", "asyncio", settings, concurrency=request.param)
    async with live_server(crowd.build, settings) as server:
        yield server


@pytest.mark.parametrize("live", [None, 300], indirect=True, ids=["by default", "300 slots"])
async def test_hundreds_of_tools_wait_in_one_process(live: LiveServer, tmp_path: Path) -> None:
    """They all meet: had they not run at once, none would go on."""
    records = [await live.submit("meet", {"folder": str(tmp_path), "number": n, "others": 200}) for n in range(200)]
    views = await asyncio.gather(*(live.end_of(record) for record in records))
    assert {view.record.status for view in views} == {"completed"}
    pids = {view.result["structuredContent"]["result"] for view in views if view.result is not None}
    assert len(pids) == 1


@pytest.mark.smoke
async def test_a_store_that_hangs_stalls_no_job(live: LiveServer, tmp_path: Path) -> None:
    ticking = await live.submit("tick", {"path": str(tmp_path / "ticks"), "until": str(tmp_path / "enough")})
    await eventually(lambda: len(lines(tmp_path / "ticks")) > 10)
    ending = [await live.submit("leave", {"path": str(tmp_path / "go")}) for _ in range(20)]
    await eventually(lambda: len(lines(tmp_path / "go.here")) == 20)
    with live.redis() as store:
        store.client_pause(int(PAUSE_SECONDS * 1000), all=True)
    (tmp_path / "go").touch()  # now twenty jobs want to store their results and to tell of their ends
    for record in ending:
        assert (await live.end_of(record)).record.status == "completed"
    (tmp_path / "enough").touch()
    assert (await live.end_of(ticking)).record.status == "completed"
    ticks = [float(line) for line in lines(tmp_path / "ticks")]
    longest = max(later - earlier for earlier, later in itertools.pairwise(ticks))
    assert longest < PAUSE_SECONDS / 2, "the loop was held while the store hung"


@pytest.mark.smoke
async def test_a_job_that_the_loop_does_not_begin_is_claimed_all_the_same(
    own: Starter, own_store: EmbeddedStoreContainer, gate: Gate
) -> None:
    """There is a slot for it, so that its start was to claim it."""
    settings = settings_for(own_store, "held")
    own.worker(TOOLS, "asyncio", settings)
    async with live_server(tools.build, settings) as live:
        holding = await live.submit("hold_loop", {"gate": str(gate)})
        await gate.reached()
        record = await live.submit("add", {"a": 1, "b": 2})
        claimed = await live.becomes(record, lambda now: now.claim is not None)
        assert claimed.started_at_ms is None
        gate.open()
        for each in (holding, record):
            assert (await live.end_of(each)).record.status == "completed"
        assert (await live.now(record)).claim == claimed.claim


async def test_a_sync_tool_stalls_no_job(live: LiveServer, tmp_path: Path) -> None:
    ticking = await live.submit("tick", {"path": str(tmp_path / "ticks"), "until": str(tmp_path / "enough")})
    await eventually(lambda: len(lines(tmp_path / "ticks")) > 10)
    assert await live.text_of("block", {"seconds": PAUSE_SECONDS}) == "blocked"
    (tmp_path / "enough").touch()
    await live.end_of(ticking)
    ticks = [float(line) for line in lines(tmp_path / "ticks")]
    longest = max(later - earlier for earlier, later in itertools.pairwise(ticks))
    assert longest < PAUSE_SECONDS / 2
