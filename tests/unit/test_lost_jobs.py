"""Which jobs the reaper takes for lost, from one sweep after another; over a scripted store and broker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import pytest

from mcp_celery.config import TaskConfig
from mcp_celery.engine import JobKind, Lane
from mcp_celery.engine.recovery import lost_jobs
from mcp_celery.engine.recovery.lost_jobs import LostJobs
from mcp_celery.engine.recovery.model import LATER_CLAIMED_MS, ORDER_MS, PublishedJob, RecoveryPolicy, Sweep
from mcp_celery.errors import QueueUnavailableError
from mcp_celery.keys import TaskType
from mcp_celery.testing import MemoryTaskQueue
from tests.support.worlds import a_record

pytestmark = pytest.mark.anyio

POLICY: Final = RecoveryPolicy(heartbeat_ms=5_000, max_redeliveries=1, lost_after_ms=600_000)
PUBLISHING_MS: Final = POLICY.publishing_ms
CLAIMING_MS: Final = POLICY.claiming_ms
NOW: Final = 1_000_000


class Queue(MemoryTaskQueue):
    """A broker that notes which queues are looked at, and of which no component's jobs are where a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[str] = []
        self.lanes: dict[str, Lane | None] = {}
        self.broken: set[str] = set()

    async def lane(self, kind: JobKind) -> Lane | None:
        if kind.declared_as in self.broken:
            raise RuntimeError("no route")
        if kind.declared_as in self.lanes:
            return self.lanes[kind.declared_as]
        return await super().lane(kind)

    async def length(self, queue: str) -> int | None:
        self.looks.append(queue)
        return await super().length(queue)


@dataclass
class Store:
    """What workers have claimed."""

    claimed: list[PublishedJob] = field(default_factory=list[PublishedJob])
    samples: int = 0

    async def some_claimed(self) -> Sequence[PublishedJob]:
        self.samples += 1
        return self.claimed


CONFIGS: Final = {"urgent": TaskConfig(priority=9), "elsewhere": TaskConfig(queue="elsewhere")}


async def declared(_: TaskType, component: str) -> tuple[str, TaskConfig]:
    return component, CONFIGS.get(component, TaskConfig())


class Stage:
    """Finds lost jobs, with a clock that a test moves."""

    def __init__(self) -> None:
        self.store, self.queue = Store(), Queue()
        self.now = NOW
        self.jobs: list[PublishedJob] = []
        self.unread_since_ms: int | None = None
        self.lost = LostJobs(
            store=self.store,  # pyright: ignore[reportArgumentType] - nothing else is asked of it
            queue=self.queue,
            declared=declared,
            policy=POLICY,
        )

    def waits(self, component: str = "tool", *, at_ms: int = NOW - PUBLISHING_MS) -> str:
        """A job that no worker has claimed."""
        job = PublishedJob(a_record(component=component).key, at_ms)
        self.jobs.append(job)
        return job.key

    def has_claimed(self, component: str = "tool", *, at_ms: int) -> None:
        self.store.claimed.append(PublishedJob(a_record(component=component).key, at_ms))

    def is_empty(self, queue: str = "memory") -> None:
        self.queue.lengths[queue] = 0

    async def sweep(self, after_ms: int = 0) -> list[str]:
        self.now += after_ms
        listed = [job for job in self.jobs if job.at_ms <= self.now - PUBLISHING_MS]
        page = listed[self.lost.skipped :][: lost_jobs.UNCLAIMED_BATCH]
        found = Sweep([], [], [], page, self.unread_since_ms, self.now)
        lost = [job.key for job in await self.lost.find(found)]
        self.jobs = [job for job in self.jobs if job.key not in lost]
        return lost


@pytest.fixture
def stage() -> Stage:
    return Stage()


class TestEmptyQueue:
    async def test_a_job_is_lost_whose_queue_stays_empty(self, stage: Stage) -> None:
        key = stage.waits()
        stage.is_empty()
        assert await stage.sweep() == []
        assert await stage.sweep(CLAIMING_MS - 1) == []
        assert await stage.sweep(1) == [key]
        assert await stage.sweep(CLAIMING_MS) == []

    async def test_a_full_queue_loses_nothing_however_long_it_takes(self, stage: Stage) -> None:
        stage.waits()
        for _ in range(20):
            assert await stage.sweep(60_000) == []

    async def test_a_queue_that_was_empty_for_a_moment_proves_nothing(self, stage: Stage) -> None:
        stage.waits()
        for length in (0, 1, 0, 2, 0):
            stage.queue.lengths["memory"] = length
            assert await stage.sweep(CLAIMING_MS - 1) == []

    async def test_a_job_that_came_later_may_be_on_its_way(self, stage: Stage) -> None:
        old = stage.waits()
        stage.is_empty()
        await stage.sweep()
        late = stage.waits(at_ms=NOW - PUBLISHING_MS + 1)
        assert await stage.sweep(CLAIMING_MS) == [old]
        assert await stage.sweep(1) == []
        assert await stage.sweep(CLAIMING_MS) == [late]

    async def test_a_lost_job_is_lost_although_others_wait_by_now(self, stage: Stage) -> None:
        keys = [stage.waits() for _ in range(3)]
        stage.is_empty()
        await stage.sweep()
        stage.unread_since_ms = NOW  # so none is found yet
        assert await stage.sweep(CLAIMING_MS) == []
        stage.queue.lengths["memory"] = 7
        stage.unread_since_ms = None
        assert await stage.sweep(1) == keys

    async def test_each_queue_is_judged_by_itself(self, stage: Stage) -> None:
        stage.waits()
        key = stage.waits("elsewhere")
        stage.is_empty("elsewhere")
        await stage.sweep()
        assert await stage.sweep(CLAIMING_MS) == [key]

    async def test_no_queue_is_read_while_no_job_waits(self, stage: Stage) -> None:
        for _ in range(3):
            await stage.sweep(CLAIMING_MS)
        assert (stage.queue.looks, stage.store.samples) == ([], 0)

    async def test_a_queue_is_looked_at_once_however_many_jobs_it_should_have(self, stage: Stage) -> None:
        for _ in range(20):
            stage.waits()
        await stage.sweep()
        assert stage.queue.looks == ["memory"]

    async def test_a_job_waits_where_its_record_says(self, stage: Stage) -> None:
        """This process may have another version of the component, or none."""
        recorded = (("priority", 3), ("queue", "recorded"))
        (job,) = (stage.waits(), stage.jobs.pop())[1:]
        stage.jobs = [replace(job, options=recorded), replace(job, key=a_record().key, options=())]
        stage.is_empty("recorded")
        await stage.sweep()
        assert sorted(stage.queue.looks) == ["memory", "recorded"]
        assert await stage.sweep(CLAIMING_MS) == [job.key]


class TestUnreadMessages:
    async def test_a_worker_that_does_not_read_may_have_what_is_missing(self, stage: Stage) -> None:
        stage.waits()
        stage.is_empty()
        stage.unread_since_ms = NOW
        for _ in range(5):
            assert await stage.sweep(CLAIMING_MS) == []

    async def test_a_worker_that_has_read_since_does_not_have_the_missing_job(self, stage: Stage) -> None:
        key = stage.waits()
        stage.is_empty()
        await stage.sweep()
        stage.unread_since_ms = NOW + 1
        assert await stage.sweep(CLAIMING_MS) == [key]


class TestLaterJobs:
    @pytest.fixture(autouse=True)
    def much_waits(self, stage: Stage) -> None:
        stage.queue.lengths["memory"] = 100

    async def test_a_job_is_lost_when_a_later_one_has_been_claimed_for_half_a_minute(self, stage: Stage) -> None:
        key = stage.waits(at_ms=NOW - ORDER_MS)
        stage.has_claimed(at_ms=NOW)
        assert await stage.sweep() == []
        assert await stage.sweep(LATER_CLAIMED_MS - 1) == []
        stage.store.claimed.clear()  # it has ended: it was claimed all the same
        assert await stage.sweep(1) == [key]

    async def test_a_claimed_job_of_about_the_same_time_proves_nothing(self, stage: Stage) -> None:
        stage.waits(at_ms=NOW - ORDER_MS)
        stage.has_claimed(at_ms=NOW - 1)
        for _ in range(5):
            assert await stage.sweep(LATER_CLAIMED_MS) == []

    @pytest.mark.parametrize("other", ["urgent", "elsewhere"])
    async def test_a_claimed_job_of_another_priority_or_queue_proves_nothing(self, stage: Stage, other: str) -> None:
        stage.waits(at_ms=NOW - ORDER_MS)
        stage.waits(other, at_ms=NOW - ORDER_MS)
        stage.queue.lengths["elsewhere"] = 1
        stage.has_claimed(other, at_ms=NOW)
        await stage.sweep()
        found = await stage.sweep(LATER_CLAIMED_MS)
        assert len(found) == 1
        assert found[0].endswith(other)

    async def test_half_a_minute_counts_from_the_first_later_job_that_was_claimed(self, stage: Stage) -> None:
        key = stage.waits(at_ms=NOW - ORDER_MS)
        for number in range(7):  # workers go on to later ones
            stage.has_claimed(at_ms=NOW + number)
            assert await stage.sweep(0 if number == 0 else 5_000) == ([key] if number == 6 else [])

    async def test_a_worker_that_does_not_read_may_have_the_earlier_job(self, stage: Stage) -> None:
        stage.waits(at_ms=NOW - ORDER_MS)
        stage.has_claimed(at_ms=NOW)
        stage.unread_since_ms = NOW
        for _ in range(3):
            assert await stage.sweep(LATER_CLAIMED_MS) == []

    async def test_claims_are_not_read_for_jobs_that_have_just_come(self, stage: Stage) -> None:
        stage.waits()
        await stage.sweep()
        assert stage.store.samples == 0


class TestUnknownLengths:
    async def test_the_setting_says_how_long_a_job_may_wait(self, stage: Stage) -> None:
        key = stage.waits()
        stage.queue.lengths["memory"] = None
        left_ms = POLICY.lost_after_ms - PUBLISHING_MS
        assert await stage.sweep(left_ms - 1) == []
        assert await stage.sweep(1) == [key]

    async def test_the_setting_also_counts_for_jobs_that_go_to_an_exchange(self, stage: Stage) -> None:
        stage.queue.lanes["tool"] = Lane(None, exchange=("jobs", "any"))
        key = stage.waits()
        assert await stage.sweep() == []
        assert stage.queue.looks == []
        assert await stage.sweep(POLICY.lost_after_ms) == [key]

    async def test_a_claimed_later_job_proves_a_loss_also_without_a_known_length(self, stage: Stage) -> None:
        stage.queue.lanes["tool"] = Lane(None, exchange=("jobs", "any"))
        key = stage.waits(at_ms=NOW - ORDER_MS)
        stage.has_claimed(at_ms=NOW)
        await stage.sweep()
        assert await stage.sweep(LATER_CLAIMED_MS) == [key]

    async def test_jobs_that_no_broker_has_are_not_lost(self, stage: Stage) -> None:
        stage.queue.lanes["tool"] = None
        stage.waits()
        assert await stage.sweep(10 * POLICY.lost_after_ms) == []
        assert stage.queue.looks == []


class TestTrouble:
    async def test_a_broker_that_does_not_answer_begins_the_time_anew(self, stage: Stage) -> None:
        key = stage.waits()
        stage.is_empty()
        await stage.sweep()
        stage.queue.fail()
        assert await stage.sweep(CLAIMING_MS) == []
        stage.queue.recover()
        assert await stage.sweep(CLAIMING_MS) == []
        assert await stage.sweep(CLAIMING_MS) == [key]

    async def test_another_reaper_in_between_begins_the_time_anew(self, stage: Stage) -> None:
        stage.waits()
        stage.is_empty()
        await stage.sweep()
        stage.lost.forget()
        assert await stage.sweep(CLAIMING_MS) == []

    async def test_a_component_without_a_route_hides_no_other_lost_job(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        stage.queue.broken.add("broken")
        stage.waits("broken")
        key = stage.waits()
        stage.is_empty()
        await stage.sweep()
        assert await stage.sweep(CLAIMING_MS) == [key]
        assert "could not find the queue of the jobs of 'broken', so none of them counts as lost" in caplog.text

    async def test_a_broker_that_does_not_say_where_jobs_wait_is_an_outage(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def lane(_: JobKind) -> Lane | None:
            raise QueueUnavailableError

        monkeypatch.setattr(stage.queue, "lane", lane)
        stage.waits()
        assert await stage.sweep() == []


class TestParts:
    """Of many unclaimed jobs each sweep sees a part."""

    async def test_all_parts_of_a_long_list_are_examined_in_turn(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lost_jobs, "UNCLAIMED_BATCH", 4)
        for number in range(10):
            stage.waits(at_ms=number)
        elsewhere = [stage.waits("elsewhere", at_ms=100 + number) for number in range(3)]
        stage.is_empty("elsewhere")
        found: list[str] = []
        for _ in range(10):
            found += await stage.sweep(CLAIMING_MS // 2)
        assert found == elsewhere

    async def test_a_lost_job_that_was_found_hides_no_other(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lost_jobs, "UNCLAIMED_BATCH", 4)
        keys = [stage.waits(at_ms=number) for number in range(11)]
        stage.is_empty()
        found: list[str] = []
        for _ in range(8):
            found += await stage.sweep(CLAIMING_MS)
        assert sorted(found) == sorted(keys)
