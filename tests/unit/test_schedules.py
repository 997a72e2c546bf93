"""Schedules: which tick beat has sent, which ticks are missed, and what is refused at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.schedules import BaseSchedule, crontab

from mcp_celery import Settings, TaskServer
from mcp_celery.engine import TaskRecord, now_ms
from mcp_celery.errors import (
    ConfigurationError,
    InvalidRequestError,
    QueueUnavailableError,
    StoreUnavailableError,
    TooManyTasksError,
)
from mcp_celery.server.celery_tasks import tasks_of
from mcp_celery.server.schedules import EARLY_MS, MISSED_AFTER_MS, Schedule, ScheduleJob, Schedules, Tick
from mcp_celery.testing import MemoryBackend
from tests.support.worlds import a_record

SECOND = 1_000
MINUTE = 60 * SECOND
OWNER = "client-a|alice"


def a_server(timezone: str = "UTC") -> TaskServer:
    app = Celery("scheduled", set_as_current=False)
    app.conf.update(timezone=timezone)
    return TaskServer("scheduled", celery=app, settings=Settings.load(), backend=MemoryBackend())


def a_schedule(when: Any, *, timezone: str = "UTC", catch_up: bool = False) -> Schedule:
    server = a_server(timezone)
    server.schedule("build_report", {"year": 2026}, when, owner=OWNER, catch_up=catch_up)
    found = tasks_of(server).schedules.get("build_report")
    assert found is not None
    return found


def at(text: str) -> int:
    return round(1000 * datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("when", "sent", "due"),
    [
        (crontab(), "2026-03-01T10:17:00.020", "2026-03-01T10:17:00"),
        (crontab(), "2026-03-01T10:17:59.900", "2026-03-01T10:17:00"),
        (crontab(minute=30), "2026-03-01T10:17:00", "2026-03-01T09:30:00"),
        (crontab(minute=0, hour=6), "2026-03-01T06:00:00", "2026-03-01T06:00:00"),
        (crontab(minute=0, hour=6), "2026-03-01T05:59:00", "2026-02-28T06:00:00"),
        (crontab(minute=0, hour=6, day_of_week="mon"), "2026-03-01T06:00:00", "2026-02-23T06:00:00"),
        (crontab(minute=0, hour=0, day_of_month="31"), "2026-03-01T06:00:00", "2026-01-31T00:00:00"),
        (crontab(minute=0, hour=0, day_of_month="29", month_of_year="2"), "2026-03-01T06:00:00", "2024-02-29T00:00:00"),
    ],
    ids=str,
)
def test_a_tick_of_a_crontab_is_the_last_of_its_times(when: crontab, sent: str, due: str) -> None:
    tick = a_schedule(when).tick(at(sent))
    assert tick is not None
    assert (tick.at_ms, tick.due_ms) == (at(due), at(due))


def test_a_crontab_is_read_in_the_time_zone_of_the_app() -> None:
    tick = a_schedule(crontab(minute=0, hour=6), timezone="Europe/Berlin").tick(at("2026-07-01T04:00:00"))
    assert tick is not None
    assert tick.due_ms == at("2026-07-01T04:00:00")


@pytest.mark.parametrize("when", [timedelta(seconds=10), 10, 10.0], ids=str)
def test_two_beats_send_one_tick_of_an_interval_in_the_same_interval(when: Any) -> None:
    schedule = a_schedule(when)
    start = at("2026-03-01T06:00:00")
    ticks = [schedule.tick(start + late) for late in (0, 3 * SECOND, 9_999, 10 * SECOND)]
    times = [tick.at_ms for tick in ticks if tick is not None]
    assert times == [start, start, start, start + 10 * SECOND]


def test_a_tick_that_comes_too_late_is_missed_unless_it_is_caught_up_with() -> None:
    sent = at("2026-03-01T06:00:00")
    for schedule, is_missed in (
        (a_schedule(crontab(minute=0, hour=6)), True),
        (a_schedule(timedelta(hours=1)), True),
        (a_schedule(crontab(minute=0, hour=6), catch_up=True), False),
    ):
        tick = schedule.tick(sent)
        assert tick is not None
        assert not schedule.is_missed(tick, sent + MISSED_AFTER_MS)
        assert schedule.is_missed(tick, sent + MISSED_AFTER_MS + 1) == is_missed


def test_each_tick_of_each_schedule_has_an_id_of_its_own() -> None:
    schedule = a_schedule(crontab())
    ticks = [schedule.tick(at("2026-03-01") + minute * MINUTE) for minute in range(3)]
    ids = {schedule.task_id(namespace, tick) for tick in ticks if tick is not None for namespace in ("one", "two")}
    assert len(ids) == 6
    assert all(len(one) == 48 for one in ids)


@pytest.mark.parametrize(
    ("arguments", "when", "options", "reason"),
    [
        ({}, crontab(), {"owner": ""}, "has no owner"),
        ({"year": object()}, crontab(), {}, "are not JSON"),
        ({}, timedelta(0), {}, "above 0"),
        ({}, BaseSchedule(), {}, "has to be a celery.schedules.crontab"),
        ({}, "0 6 * * *", {}, "has to be a celery.schedules.crontab"),
    ],
)
def test_a_wrong_schedule_is_refused_where_it_is_made(
    arguments: dict[str, Any], when: Any, options: dict[str, str], reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        a_server().schedule("build_report", arguments, when, owner=options.get("owner", OWNER))


def test_two_schedules_of_one_name_are_refused() -> None:
    server = a_server()
    server.schedule("build_report", None, crontab(), owner=OWNER)
    server.schedule("build_report", None, crontab(), owner=OWNER, name="another")
    with pytest.raises(ConfigurationError, match="two schedules 'another'"):
        server.schedule("clean_up", None, crontab(), owner=OWNER, name="another")


def test_a_worker_refuses_a_schedule_of_a_tool_that_does_not_run_as_a_task() -> None:
    server = a_server()
    server.schedule("build_report", None, crontab(), owner=OWNER)
    schedules, app = tasks_of(server).schedules, Celery("worker", set_as_current=False)
    with pytest.raises(ConfigurationError, match="no tool of that name runs as a task"):
        schedules.register(app, "scheduled", [("prompt", "build_report")])
    schedules.register(app, "scheduled", [("tool", "build_report")])
    assert isinstance(app.tasks["mcp.scheduled.schedule"], ScheduleJob)


def _nothing() -> Any:
    raise AssertionError("nobody asks")


class Failing(Schedules):
    """Schedules whose tasks cannot be submitted at first."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__(Celery("failing", set_as_current=False), _nothing, _nothing)
        self.errors = list(errors)
        self.asked: list[str] = []

    async def submit(self, schedule: Schedule, task_id: str) -> TaskRecord:
        self.asked.append(task_id)
        if self.errors:
            raise self.errors.pop(0)
        return a_record()


def ticked(schedules: Schedules, when: Any = 3_600, **message: Any) -> Any:
    """What comes of a tick that a worker gets."""
    schedules.add("tool", None, when, owner=OWNER, issuer=None, catch_up=False, name="hourly")
    app = Celery("worker", set_as_current=False)
    schedules.register(app, "scheduled", [("tool", "tool")])
    return app.tasks["mcp.scheduled.schedule"].apply(("hourly",), message)


def test_a_tick_is_tried_again_as_the_same_task_where_something_does_not_answer() -> None:
    schedules = Failing(StoreUnavailableError(), QueueUnavailableError(), TooManyTasksError(1))
    assert ticked(schedules, sent_ms=now_ms()).successful()
    assert len(schedules.asked) == 4
    assert len(set(schedules.asked)) == 1


def test_a_tick_that_is_refused_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    schedules = Failing(InvalidRequestError("no such year"))
    assert ticked(schedules).successful()
    assert len(schedules.asked) == 1
    assert "a tick of the schedule 'hourly' makes no task: no such year" in caplog.text


def test_a_tick_of_the_future_counts_as_one_of_now() -> None:
    """Else a message with a wrong time would take the place of a tick that is still to come."""
    schedules = Failing()
    before = now_ms()
    assert ticked(schedules, sent_ms=before + 365 * 24 * 60 * MINUTE).successful()
    hourly = schedules.get("hourly")
    assert hourly is not None
    ticks = [hourly.tick(one) for one in (before, now_ms() + EARLY_MS)]
    assert schedules.asked[0] in {hourly.task_id("scheduled", tick) for tick in ticks if tick is not None}


@pytest.mark.parametrize("ahead", [0, 3 * SECOND, 4 * MINUTE])
def test_a_tick_of_a_beat_whose_clock_is_ahead_is_not_lost(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    due = at("2026-03-01T06:00:00")
    monkeypatch.setattr("mcp_celery.server.schedules.now_ms", lambda: due - ahead)
    schedules = Failing()
    assert ticked(schedules, crontab(minute=0, hour=6), sent_ms=due + 5).successful()
    daily = schedules.get("hourly")
    assert daily is not None
    assert schedules.asked == [daily.task_id("scheduled", Tick(due, due))]


def test_a_missed_tick_makes_no_task(caplog: pytest.LogCaptureFixture) -> None:
    schedules = Failing()
    assert ticked(schedules, sent_ms=now_ms() - MISSED_AFTER_MS - MINUTE).successful()
    assert schedules.asked == []
    assert "missed a tick of the schedule 'hourly'" in caplog.text


def test_beat_gets_an_entry_for_each_schedule() -> None:
    server = a_server()
    server.schedule("build_report", None, 60, owner=OWNER)
    ((name, entry),) = tasks_of(server).beat_entries().items()
    assert name == "mcp.scheduled.schedule.build_report"
    assert entry["task"] == "mcp.scheduled.schedule"
    assert entry["args"] == ("build_report",)
    assert entry["options"] == {"queue": "mcp.scheduled"}
