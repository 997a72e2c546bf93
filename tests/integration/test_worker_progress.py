"""What a job says while it runs: pushed in order, seldom enough, and its last word never lost."""

from __future__ import annotations

import pytest

from mcp_celery.engine import Progress, TaskRecord, TaskView
from tests.support.live import ANYONE, Gate, LiveServer
from tests.support.waiting import soon

pytestmark = [pytest.mark.anyio, pytest.mark.each_pool]

WRITES_BESIDES = 3
"""The first revision, the end, and one report more than fit a time that is not a multiple of the interval."""


async def states(live: LiveServer, record: TaskRecord) -> list[TaskRecord]:
    """Every state of a task that a follower is told."""
    found: list[TaskRecord] = []

    async def follow() -> None:
        async with live.engine.watch(ANYONE, [record.task_id]) as watch:
            found.extend([view.record async for view in watch])

    await soon(follow())
    return found


def seconds_of(view: TaskView) -> float:
    """How long the tool says it took."""
    assert view.result is not None
    return float(view.result["content"][0]["text"])


def steps(records: list[TaskRecord]) -> list[float]:
    return [record.progress.value for record in records if record.progress is not None]


@pytest.mark.smoke
async def test_a_burst_costs_few_writes_and_its_last_value_arrives(live: LiveServer) -> None:
    view = await live.run("report", {"count": 1000})
    seconds = seconds_of(view)
    assert view.record.status_message == "step (1000/1000)"
    writes = seconds * 1000 / live.settings.progress_interval_ms
    assert view.record.revision <= writes + WRITES_BESIDES


async def test_the_numbers_behind_the_last_message_arrive_too(live: LiveServer) -> None:
    view = await live.run("report", {"count": 1000})
    assert view.record.progress == Progress(1000, 1000)


async def test_steady_reports_are_thinned_out_and_arrive_in_order(live: LiveServer) -> None:
    record = await live.submit("report_steadily", {"count": 100, "pause_ms": 5})
    told = await states(live, record)
    seconds = seconds_of(await live.engine.get(ANYONE, record.task_id))
    assert told[-1].status == "completed"
    assert told[-1].revision <= seconds * 1000 / live.settings.progress_interval_ms + WRITES_BESIDES
    assert steps(told) == sorted(steps(told))
    assert len(set(steps(told))) > 1, "the follower is told while the job runs"
    assert all(record.status == "working" for record in told[:-1])
    assert [record.revision for record in told] == sorted({record.revision for record in told})


async def test_the_last_value_before_a_pause_is_reported(live: LiveServer, gate: Gate) -> None:
    record = await live.submit("report_and_hold", {"gate": str(gate)})
    said = await live.becomes(record, lambda now: now.status_message == "step (3/10)")
    assert said.status == "working"
    assert said.progress == Progress(3, 10)
    gate.open()
    assert (await live.end_of(record)).record.status_message == "step (3/10)"


@pytest.mark.smoke
async def test_a_sync_tool_reports_from_its_thread(live: LiveServer) -> None:
    view = await live.run("report_sync", {"count": 20})
    assert view.record.status == "completed"
    assert view.record.status_message == "step (20/20)"


async def test_a_log_message_becomes_the_status_message(live: LiveServer) -> None:
    view = await live.run("say", {"text": "half-way there"})
    assert view.record.status == "completed"
    assert view.record.status_message == "half-way there"
