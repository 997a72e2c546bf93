"""What is said of a task that waits, for each reason why it does."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from mcp_celery.broker.consumers import CeleryWorker
from mcp_celery.common.durations import span
from mcp_celery.engine import Claim, ForeignWork, TaskRecord
from mcp_celery.operate.waiting import Reason, Surroundings, waiting_of
from mcp_celery.store.inspection import InspectedTask, LeasedWorker, Place
from tests.support.worlds import a_record

NOW: Final = 1_000_000
RECORD: Final = replace(a_record(), created_at_ms=NOW - 90_000, updated_at_ms=NOW - 90_000, fingerprint="f1")
QUEUED: Final = Place(due_ms=None, unclaimed_ms=NOW - 90_000, ahead=3, followers=0, now_ms=NOW)
TAKEN: Final = replace(QUEUED, unclaimed_ms=None, ahead=0)
LIVE: Final = LeasedWorker("w@host/1", NOW + 10_000, {"f1": "tool:my_tool"}, 1)
OTHER: Final = replace(LIVE, components={"f2": "tool:my_tool"})
LATE: Final = replace(LIVE, until_ms=NOW - 2_000)
CLAIM: Final = Claim("w@host/1", NOW - 60_000)
CONSUMER: Final = CeleryWorker("w@host", ("q",), "threads", slots=2, active=1)
BUSY: Final = replace(CONSUMER, active=2)
ELSEWHERE: Final = replace(CONSUMER, queues=("other",))


def inspected(
    record: TaskRecord, *, started: bool = False, parked: bool = False, claimed: int | None = None
) -> InspectedTask:
    return InspectedTask(record, started, parked, claimed, 0)


CLAIMED: Final = replace(RECORD, claim=CLAIM)
CASES: Final[dict[str, tuple[InspectedTask, Surroundings, Reason, str]]] = {
    "ended": (inspected(replace(RECORD, status="failed")), Surroundings(place=TAKEN), "ended", "has ended (failed)"),
    "asks": (
        inspected(replace(RECORD, status="input_required"), parked=True),
        Surroundings(place=TAKEN),
        "answer",
        "for 1m 30s; no job runs meanwhile",
    ),
    "exposed": (inspected(replace(RECORD, work=ForeignWork())), Surroundings(place=TAKEN), "exposed", "Celery jobs"),
    "retries": (
        inspected(replace(CLAIMED, retries=2, retry_at_ms=NOW + 5_000), claimed=1),
        Surroundings(place=TAKEN, leased=[LIVE]),
        "retry",
        "its retry 2, at 1970-01-01 00:16:45 UTC",
    ),
    "due": (inspected(RECORD), Surroundings(place=replace(TAKEN, due_ms=NOW)), "to be published", "within seconds"),
    "due without a reaper": (
        inspected(RECORD),
        Surroundings(place=replace(TAKEN, due_ms=NOW), has_reaper=False),
        "to be published",
        "no server or worker runs",
    ),
    "no worker": (
        inspected(RECORD), Surroundings(place=QUEUED, queue="q"), "no worker", "no live worker consumes the queue 'q'"
    ),
    "a worker without the queue": (
        inspected(RECORD),
        Surroundings(place=QUEUED, queue="q", leased=[LIVE], answering={"w@host": ELSEWHERE}),
        "no worker",
        "no live worker consumes the queue 'q'",
    ),
    "a worker of another store": (
        inspected(RECORD),
        Surroundings(place=QUEUED, queue="q", answering={"w@host": CONSUMER}),
        "no worker",
        "w@host consumes the queue 'q', but sends no heartbeat to this store",
    ),
    "another version": (
        inspected(RECORD),
        Surroundings(place=QUEUED, queue="q", leased=[OTHER], answering={"w@host": CONSUMER}),
        "other version",
        "a worker with version f1 of the component",
    ),
    "busy": (
        inspected(RECORD),
        Surroundings(place=QUEUED, queue="q", leased=[LIVE], answering={"w@host": BUSY}, length=7),
        "busy",
        "all 2 are busy, and 3 jobs are ahead of it, 7 in the queue 'q'",
    ),
    "its turn, without remote control": (
        inspected(RECORD),
        Surroundings(place=replace(QUEUED, ahead=1), queue="q", leased=[LIVE], answering=None),
        "busy",
        "its turn, for 1m 30s: 1 job is ahead of it",
    ),
    "received, busy": (
        inspected(CLAIMED, claimed=0),
        Surroundings(place=TAKEN, leased=[LIVE], answering={"w@host": BUSY}),
        "busy",
        "a free slot of w@host: all 2 are busy",
    ),
    "received": (inspected(CLAIMED, claimed=0), Surroundings(place=TAKEN, leased=[LIVE]), "starting", "w@host to"),
    "running": (
        inspected(replace(CLAIMED, started_at_ms=NOW - 61_000), started=True, claimed=0),
        Surroundings(place=TAKEN, leased=[LIVE]),
        "running",
        "which runs on w@host, for 1m 1s",
    ),
    "missed heartbeats": (
        inspected(replace(CLAIMED, started_at_ms=NOW), started=True, claimed=0),
        Surroundings(place=TAKEN, leased=[LATE], lease_ms=15_000),
        "missed heartbeats",
        "its last heartbeat was 17s ago",
    ),
    "a worker that is gone": (
        inspected(CLAIMED, claimed=0), Surroundings(place=TAKEN), "missed heartbeats", "its heartbeats have ended"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_state_around_a_task_gives_the_reason_why_it_waits(name: str) -> None:
    task, around, reason, text = CASES[name]
    waiting = waiting_of(task, around)
    assert waiting.reason == reason
    assert text in waiting.text


def test_the_command_is_given_only_where_no_live_worker_consumes_the_queue() -> None:
    alone = Surroundings(place=QUEUED, queue="q", command="celery worker -Q q")
    assert waiting_of(inspected(RECORD), alone).command == "celery worker -Q q"
    assert alone.is_without_worker("f1")
    for around in (
        replace(alone, answering={"w@host": CONSUMER}),
        replace(alone, leased=[OTHER], answering={"w@host": CONSUMER}),
        replace(alone, leased=[LIVE], answering=None),
    ):
        assert waiting_of(inspected(RECORD), around).command is None
        assert not around.is_without_worker("f1")


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0, "0s"), (850, "1s"), (61_000, "1m 1s"), (3_600_000, "1h"), (7_260_000, "2h 1m"), (180_000_000, "2d 2h")],
)
def test_a_time_is_shown_in_its_largest_units(ms: int, text: str) -> None:
    assert span(ms) == text
