"""What operators see of a job: that it runs and how it ended, never what was asked or answered."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_celery import TaskConfig
from mcp_celery.engine import TaskRecord
from mcp_celery.logs import with_short_ids
from mcp_celery.redaction import HIDDEN
from tests.integration.conftest import texts_of
from tests.support.live import EventLog, Gate, LiveServer
from tests.support.nodes import WorkerNode
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

SECRET = "sesame-4711"


async def told(events: EventLog, record: TaskRecord, kind: str) -> dict[str, Any]:
    """Wait for an event of a job."""
    await eventually(lambda: kind in events.kinds_of(record.job_id), what=f"{kind} of the job")
    return next(event for event in events.of(record.job_id) if event["type"] == kind)


@pytest.mark.smoke
async def test_a_job_is_seen_from_its_arrival_to_its_end(
    live: LiveServer, worker: WorkerNode, events: EventLog
) -> None:
    record = await live.submit("echo", {"text": SECRET})
    await live.end_of(record)
    succeeded = await told(events, record, "task-succeeded")
    assert events.kinds_of(record.job_id) == ["task-received", "task-started", "task-succeeded"]
    assert {event["hostname"] for event in events.of(record.job_id)} == {worker.hostname()}
    assert succeeded["result"] == "<completed>"


@pytest.mark.each_pool
async def test_arguments_and_result_are_in_no_event_and_no_log_line(
    live: LiveServer, worker: WorkerNode, events: EventLog
) -> None:
    record = await live.submit("echo", {"text": SECRET})
    view = await live.end_of(record)
    received = await told(events, record, "task-received")
    await told(events, record, "task-succeeded")
    assert view.result is not None
    assert SECRET in str(view.result)
    assert received["args"] == "()"
    assert received["kwargs"] == f"{{'text': {HIDDEN}}}"
    assert SECRET not in texts_of(events.all())
    assert with_short_ids(record.job_id) in worker.process.logs_since_mark()
    assert SECRET not in worker.process.logs_since_mark()


async def test_arguments_that_may_be_shown_are_shown_and_no_others(
    live: LiveServer, worker: WorkerNode, events: EventLog
) -> None:
    config = TaskConfig(show_arguments=["detail"])
    record = await live.submit("refuse", {"message": SECRET, "detail": "on-sundays"}, config=config)
    await live.end_of(record)
    received = await told(events, record, "task-received")
    assert received["kwargs"] == f"{{'message': {HIDDEN}, 'detail': 'on-sundays'}}"


async def test_an_error_is_seen_by_its_code_only(live: LiveServer, worker: WorkerNode, events: EventLog) -> None:
    record = await live.submit("refuse", {"message": f"{SECRET}-message", "detail": f"{SECRET}-data"})
    await live.end_of(record)
    failed = await told(events, record, "task-failed")
    assert "-32050" in failed["exception"]
    assert SECRET not in texts_of(events.all())
    assert with_short_ids(record.job_id) in worker.process.logs_since_mark()
    assert SECRET not in worker.process.logs_since_mark()


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_the_text_of_a_crash_is_for_the_log_alone(live: LiveServer, worker: WorkerNode, events: EventLog) -> None:
    record = await live.submit("crash", {"secret": SECRET})
    view = await live.end_of(record)
    succeeded = await told(events, record, "task-succeeded")
    assert succeeded["result"] == "<tool error>"
    assert SECRET not in texts_of(events.all())
    assert SECRET not in str(view.result)
    assert SECRET in worker.process.logs_since_mark()


@pytest.mark.parametrize("state", ["active", "query_task"])
async def test_inspecting_a_running_job_shows_no_argument(
    live: LiveServer, worker: WorkerNode, gate: Gate, state: str
) -> None:
    record = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    inspect: Any = live.app.control.inspect([worker.hostname()])
    found = inspect.active() if state == "active" else inspect.query_task([record.job_id])
    assert record.job_id in str(found)
    assert str(gate) not in str(found)
