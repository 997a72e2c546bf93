"""What the reaper does with each answer of the store, the broker and the result backend; over a scripted store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import pytest

from mcp_celery.config import TaskConfig
from mcp_celery.engine import Change, Changed, Claim, ForeignWork, StoredTask, TaskRecord, TaskRef
from mcp_celery.engine.recovery.model import Expiring, Loss, PublishedJob, RecoveryPolicy, StoreCounts, Sweep, Verdict
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.engine.store_mark import StoreMark
from mcp_celery.errors import Fault, QueueUnavailableError, StoredDataError, StoreUnavailableError
from mcp_celery.keys import TaskType
from mcp_celery.testing import MemoryBackend, MemoryTaskQueue
from tests.support.waiting import eventually, soon
from tests.support.worlds import SNAPSHOT, a_record

pytestmark = pytest.mark.anyio

POLICY: Final = RecoveryPolicy(heartbeat_ms=2_000, max_redeliveries=1)
LEASE_SECONDS: Final = 6.0
MOST_SWEEPS: Final = 20
"""More than any test makes."""
Run = Callable[..., Awaitable[list[float]]]
NOTHING: Final = Sweep(dead=[], expiring=[], due=[])


class EndError(BaseException):
    """Ends what runs for ever, and outlives every error."""


@dataclass
class Script:
    """A recovery store that answers what a test says, and notes what it is asked."""

    found: Sweep | None = NOTHING
    queued: list[Sweep] = field(default_factory=list[Sweep])
    claims: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    verdicts: dict[str, Verdict] = field(default_factory=dict[str, Verdict])
    fails: Exception | None = None
    sweeps: list[tuple[str, RecoveryPolicy]] = field(default_factory=list[tuple[str, RecoveryPolicy]])
    recovered: list[tuple[str, str, Loss, RecoveryPolicy, int]] = field(
        default_factory=list[tuple[str, str, Loss, RecoveryPolicy, int]]
    )
    resigned: list[str] = field(default_factory=list[str])
    buried: list[str] = field(default_factory=list[str])
    not_due: list[str] = field(default_factory=list[str])
    dropped: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    forgotten: list[Expiring] = field(default_factory=list[Expiring])
    claimed_jobs: list[PublishedJob] = field(default_factory=list[PublishedJob])
    decided: list[tuple[PublishedJob, RecoveryPolicy]] = field(
        default_factory=list[tuple[PublishedJob, RecoveryPolicy]]
    )
    skipped: list[int] = field(default_factory=list[int])
    attended: dict[str, int] = field(default_factory=dict[str, int])
    not_attended: list[str] = field(default_factory=list[str])
    published_by_another: set[str] = field(default_factory=set[str])
    unanswered: set[str] = field(default_factory=set[str])
    """Keys of which the store does not say whether they are due."""
    beating: set[str] = field(default_factory=set[str])
    """Workers that have beaten since they were found dead."""
    damaged: set[str] = field(default_factory=set[str])
    """Workers whose claims cannot be read."""

    async def beat(
        self,
        worker: str,
        lease_ms: int,
        components: Mapping[str, str] | None = None,
        unread_ms: int = 0,
        slots: int = 0,
    ) -> None:
        raise AssertionError((worker, lease_ms, components, unread_ms, slots))

    async def mark(self, new: StoreMark | None = None) -> StoreMark | None:
        raise AssertionError(new)

    async def overdue(self) -> Sequence[str]:
        return [] if self.found is None else self.found.due

    async def is_due(self, key: str) -> bool:
        if key in self.unanswered:
            raise StoreUnavailableError
        return key not in self.published_by_another

    async def some_claimed(self) -> Sequence[PublishedJob]:
        return self.claimed_jobs

    async def lost(self, job: PublishedJob, policy: RecoveryPolicy) -> Verdict:
        self.decided.append((job, policy))
        return self.verdicts.get(job.key, "nothing")

    async def sweep(self, reaper: str, policy: RecoveryPolicy, skipped: int = 0) -> Sweep | None:
        self.skipped.append(skipped)
        self.sweeps.append((reaper, policy))
        if len(self.sweeps) > MOST_SWEEPS:
            raise EndError
        if self.fails is not None:
            raise self.fails
        return self.queued.pop(0) if self.queued else self.found

    async def resign(self, reaper: str) -> None:
        self.resigned.append(reaper)
        if self.fails is not None:
            raise self.fails

    async def claimed(self, worker: str) -> Sequence[str]:
        if worker in self.damaged:
            raise ValueError(worker)
        return self.claims.get(worker, [])

    async def recover(
        self, key: str, worker: str, loss: Loss, policy: RecoveryPolicy, *, before_ms: int = 0
    ) -> Verdict:
        self.recovered.append((key, worker, loss, policy, before_ms))
        return self.verdicts.get(key, "nothing")

    async def bury(self, worker: str, *, died: bool = False) -> bool:
        assert died
        if worker not in self.beating:
            self.buried.append(worker)
        return worker not in self.beating

    async def forget_due(self, key: str) -> None:
        self.not_due.append(key)

    async def drop_due(self, key: str, reason: str) -> None:
        self.dropped.append((key, reason))

    async def attended_until_ms(self, key: str) -> int | None:
        return self.attended.get(key)

    async def forget_attended(self, key: str) -> None:
        self.not_attended.append(key)

    async def forget(self, expired: Sequence[Expiring]) -> None:
        self.forgotten += expired

    async def counts(self) -> StoreCounts:
        raise AssertionError


class Queue(MemoryTaskQueue):
    """A broker that notes how jobs are revoked, and whose trouble is whatever a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: dict[str, Exception] = {}
        self.held: dict[str, asyncio.Event] = {}
        """What the first publication of a task's job waits for."""
        self.revokes: list[tuple[list[str], bool]] = []

    async def publish(self, record: TaskRecord, submission: object) -> None:
        if record.task_id in self.trouble:
            raise self.trouble[record.task_id]
        if (released := self.held.pop(record.task_id, None)) is not None:
            await released.wait()
        await super().publish(record, submission)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    async def revoke(self, *job_ids: str, terminate: bool = True) -> None:
        self.revokes.append((list(job_ids), terminate))


async def declared(_: TaskType, component: str) -> tuple[str, TaskConfig]:
    return component, TaskConfig(queue="declared")


class Stage:
    """A reaper among what it uses, with a clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, policy: RecoveryPolicy = POLICY) -> None:
        self.script, self.queue = Script(), Queue()
        self.backend = MemoryBackend()
        self.thrown_away: list[str] = []
        self.now = 1_000.0
        self.reaper = Reaper(
            store=self.script,
            tasks=self.backend.store,
            queue=self.queue,
            results=self,
            declared=declared,
            policy=policy,
        )
        monkeypatch.setattr(Reaper, "_now", staticmethod(lambda: self.now))

    async def forget(self, job_ids: Sequence[str]) -> None:
        self.thrown_away += job_ids

    async def created(self, **values: object) -> TaskRecord:
        record = replace(a_record(), **values)  # pyright: ignore[reportArgumentType]
        await self.backend.store.create(record, SNAPSHOT)
        return record

    async def sweep(self, found: Sweep) -> bool:
        self.script.found = found
        return await self.reaper.sweep()

    async def trusted_sweep(self, found: Sweep) -> bool:
        """Sweep when every live worker has had the time to say so."""
        self.script.found = NOTHING
        await self.reaper.sweep()
        self.now += LEASE_SECONDS
        return await self.sweep(found)

    @property
    def published(self) -> list[str]:
        return [record.task_id for record, _ in self.queue.published]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def dead(*workers: str) -> Sweep:
    return replace(NOTHING, dead=list(workers))


def due(*records: TaskRecord) -> Sweep:
    return replace(NOTHING, due=[record.key for record in records])


def expiring(*tasks: Expiring) -> Sweep:
    return replace(NOTHING, expiring=list(tasks))


def unclaimed(*records: TaskRecord) -> Sweep:
    """A sweep that finds jobs that no worker has claimed for as long as one may wait where no queue can be counted."""
    jobs = [PublishedJob(record.key, 0) for record in records]
    return replace(NOTHING, unclaimed=jobs, at_ms=POLICY.lost_after_ms)


class TestDeaths:
    async def test_each_task_of_each_dead_worker_is_decided_on_and_the_worker_forgotten(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        again, failed, other = [await stage.created() for _ in range(3)]
        stage.script.claims = {"w1": [again.key, failed.key, other.key], "w2": []}
        stage.script.verdicts = {again.key: "again", failed.key: "failed"}
        with caplog.at_level(logging.WARNING):
            assert await stage.trusted_sweep(dead("w1", "w2")) is False
        keys = [record.key for record in (again, failed, other)]
        assert stage.script.recovered == [(key, "w1", "died", POLICY, 0) for key in keys]
        assert stage.published == [again.task_id]
        assert stage.script.buried == ["w1", "w2"]
        assert [record.getMessage() for record in caplog.records] == [
            "worker w1 has died: 1 of its jobs are published again, 1 of its tasks have failed",
            "worker w2 has died: 0 of its jobs are published again, 0 of its tasks have failed",
        ]

    async def test_a_worker_that_is_alive_after_all_keeps_its_jobs(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        first, second = [await stage.created() for _ in range(2)]
        stage.script.claims = {"w1": [first.key, second.key]}
        stage.script.verdicts = {first.key: "alive", second.key: "again"}
        await stage.trusted_sweep(dead("w1"))
        assert [key for key, *_ in stage.script.recovered] == [first.key]
        assert (stage.script.buried, stage.published, caplog.messages) == ([], [], [])

    async def test_a_worker_without_jobs_that_is_alive_after_all_is_not_said_to_have_died(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        stage.script.beating = {"w1"}
        with caplog.at_level(logging.WARNING):
            await stage.trusted_sweep(dead("w1", "w2"))
        assert stage.script.buried == ["w2"]
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("worker w2 has died")

    async def test_a_worker_whose_jobs_cannot_be_recovered_delays_no_other(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        stage.script.damaged = {"w1"}
        record = await stage.created()
        await stage.trusted_sweep(replace(dead("w1", "w2"), due=[record.key]))
        assert stage.script.buried == ["w2"]
        assert stage.published == [record.task_id]
        assert caplog.messages[0] == "could not recover the jobs of worker w1"

    async def test_a_job_that_cannot_be_published_again_delays_no_other(self, stage: Stage) -> None:
        first, second = [await stage.created() for _ in range(2)]
        stage.queue.trouble[first.task_id] = RuntimeError("cannot be serialized")
        stage.script.claims = {"w1": [first.key, second.key]}
        stage.script.verdicts = {first.key: "again", second.key: "again"}
        await stage.trusted_sweep(dead("w1"))
        assert stage.published == [second.task_id]
        assert stage.script.buried == ["w1"]

    async def test_recovered_and_failed_jobs_are_counted(self, stage: Stage) -> None:
        stage.script.claims = {"w1": ["k1", "k2", "k3"]}
        stage.script.verdicts = {"k1": "failed", "k3": "failed"}
        assert await stage.reaper.settle("w1", "disconnected", 7) == {"failed": 2, "nothing": 1}
        assert stage.script.recovered[0] == ("k1", "w1", "disconnected", POLICY, 7)

    async def test_no_worker_counts_as_dead_before_one_lease_has_passed(self, stage: Stage) -> None:
        await stage.sweep(dead("w1"))
        stage.now += LEASE_SECONDS - 0.001
        await stage.sweep(dead("w1"))
        assert stage.script.buried == []
        stage.now += 0.001
        await stage.sweep(dead("w1"))
        assert stage.script.buried == ["w1"]

    async def test_a_process_that_has_asked_the_store_for_a_lease_reaps_as_soon_as_it_is_elected(
        self, stage: Stage
    ) -> None:
        stage.script.found = None  # another process is the reaper, and dies
        await stage.reaper.sweep()
        stage.now += LEASE_SECONDS
        await stage.sweep(dead("w1"))
        assert stage.script.buried == ["w1"]


class TestLostJobs:
    @pytest.fixture(autouse=True)
    def queue_without_a_length(self, stage: Stage) -> None:
        """A broker that cannot count its jobs, so that a job is lost when it has waited for long enough."""
        stage.queue.lengths["declared"] = None

    async def test_each_lost_job_is_decided_on_and_published_again_where_the_store_says_so(self, stage: Stage) -> None:
        again, failed, _, second = records = [await stage.created() for _ in range(4)]
        stage.script.verdicts = {again.key: "again", failed.key: "failed", second.key: "again"}
        found = unclaimed(*records)
        assert await stage.trusted_sweep(found) is False
        assert stage.script.decided == [(job, POLICY) for job in found.unclaimed]
        assert stage.published == [again.task_id, second.task_id]

    @pytest.mark.parametrize(
        ("verdicts", "logged"),
        [
            (["again", "failed", "again", "failed", "failed", "nothing"], [(2, 3)]),
            (["again"], [(1, 0)]),
            (["failed"], [(0, 1)]),
            (["nothing", "nothing"], []),
        ],
    )
    async def test_the_log_says_how_many_jobs_the_broker_has_lost(
        self, stage: Stage, caplog: pytest.LogCaptureFixture, verdicts: list[Verdict], logged: list[tuple[int, int]]
    ) -> None:
        records = [await stage.created() for _ in verdicts]
        stage.script.verdicts = {record.key: verdict for record, verdict in zip(records, verdicts, strict=True)}
        await stage.trusted_sweep(unclaimed(*records))
        assert caplog.messages == [
            f"the broker has lost jobs: {again} of them are published again, {failed} tasks have failed"
            for again, failed in logged
        ]

    async def test_no_job_counts_as_lost_before_live_workers_had_time_to_say_what_they_have_not_read(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mcp_celery.engine.recovery.reaper.UNCLAIMED_BATCH", 1)
        found = unclaimed(await stage.created())
        assert await stage.sweep(found) is False
        assert stage.script.decided == []
        stage.now += LEASE_SECONDS
        assert await stage.sweep(found) is True
        assert stage.script.decided == [(found.unclaimed[0], POLICY)]

    @pytest.mark.parametrize(("lost", "more"), [(1, False), (2, True), (3, True)])
    async def test_a_full_batch_of_lost_jobs_calls_for_another_sweep(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, lost: int, *, more: bool
    ) -> None:
        monkeypatch.setattr("mcp_celery.engine.recovery.reaper.UNCLAIMED_BATCH", 2)
        assert await stage.trusted_sweep(unclaimed(*[await stage.created() for _ in range(lost)])) is more

    async def test_the_next_sweep_leaves_out_the_unclaimed_jobs_that_this_one_has_seen(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mcp_celery.engine.recovery.lost_jobs.UNCLAIMED_BATCH", 2)
        found = replace(unclaimed(*[await stage.created() for _ in range(2)]), at_ms=1)
        for _ in range(2):
            await stage.sweep(found)
        await stage.sweep(NOTHING)
        await stage.sweep(NOTHING)
        assert stage.script.skipped == [0, 2, 4, 0]


class TestDueJobs:
    async def test_a_job_is_published_as_its_component_declares(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        record = await stage.created(attempt=2, leg=2)
        with caplog.at_level(logging.INFO):
            await stage.sweep(due(record))
        ((published, submission),) = stage.queue.published
        assert (published, submission.config.queue) == (record, "declared")
        assert caplog.messages == [f"job {record.job_id} is published again: attempt 2"]
        assert stage.thrown_away == []

    async def test_the_log_says_that_a_first_attempt_is_published(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        record = await stage.created()
        with caplog.at_level(logging.INFO):
            await stage.sweep(due(record))
        assert caplog.messages == [f"job {record.job_id} is published: attempt 1"]

    async def test_the_result_of_an_earlier_attempt_is_deleted_before_publishing(self, stage: Stage) -> None:
        record = await stage.created(attempt=2, redeliveries=1)
        await stage.sweep(due(record))
        assert stage.thrown_away == [record.job_id]

    async def test_a_result_that_a_lost_job_stores_later_stays(self, stage: Stage) -> None:
        record = await stage.created(redeliveries=1)
        await stage.sweep(due(record))
        assert (stage.published, stage.thrown_away) == ([record.task_id], [])

    async def test_a_due_job_that_is_too_late_fails(self, stage: Stage) -> None:
        late, record = await stage.created(start_before_ms=1), await stage.created()
        stage.backend.store.ledger.due[late.ref] = 0
        await stage.sweep(due(late, record))
        assert stage.published == [record.task_id]
        failed = await stage.backend.store.load(late.ref)
        assert failed is not None
        assert (failed.record.status, failed.record.status_message) == (
            "failed",
            "The job expired before a worker could start it",
        )
        assert late.ref not in stage.backend.store.ledger.due

    async def test_a_published_job_is_noted_as_published(self, stage: Stage) -> None:
        record = await stage.created(attempt=2)
        stage.backend.store.ledger.due[record.ref] = 0
        await stage.sweep(due(record))
        assert record.ref not in stage.backend.store.ledger.due

    async def test_a_job_that_was_published_since_it_was_found_is_left_alone(self, stage: Stage) -> None:
        """Its job may have ended by now, and then its result would be forgotten."""
        record, other = await stage.created(attempt=2), await stage.created()
        stage.script.published_by_another.add(record.key)
        await stage.sweep(due(record, other))
        assert stage.published == [other.task_id]
        assert stage.thrown_away == []

    async def test_a_task_that_is_gone_is_due_no_longer_and_the_next_one_is_published(self, stage: Stage) -> None:
        gone, record = a_record(), await stage.created()
        await stage.sweep(due(gone, record))
        assert stage.script.not_due == [gone.key]
        assert stage.published == [record.task_id]

    async def test_all_that_are_due_are_published(self, stage: Stage) -> None:
        records = [await stage.created() for _ in range(3)]
        await stage.sweep(due(*records))
        assert stage.published == [record.task_id for record in records]

    @pytest.mark.parametrize("why", ["has ended", "is claimed"])
    async def test_a_task_that_needs_no_job_is_due_no_longer(self, stage: Stage, why: str) -> None:
        record, other = await stage.created(), await stage.created()
        store = stage.backend.store
        if why == "has ended":
            assert await store.change(record.ref, Change(to="cancelled"))
        else:
            assert store.ledger.claim(record.ref, attempt=1, claim=Claim("w1", 1))
        store.ledger.due[record.ref] = 0
        await stage.sweep(due(record, other))
        assert stage.published == [other.task_id]
        assert record.ref not in store.ledger.due

    async def test_a_broker_that_does_not_answer_is_asked_once_for_all_due_jobs(self, stage: Stage) -> None:
        first, second = [await stage.created() for _ in range(2)]
        stage.queue.trouble[first.task_id] = QueueUnavailableError()
        stage.backend.store.ledger.due[first.ref] = 0
        await stage.sweep(due(first, second))
        assert stage.published == []
        assert first.ref in stage.backend.store.ledger.due

    async def test_a_due_job_that_cannot_be_published_delays_no_other(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        first, second = [await stage.created() for _ in range(2)]
        stage.queue.trouble[first.task_id] = RuntimeError("cannot be serialized")
        await stage.sweep(due(first, second))
        assert stage.published == [second.task_id]
        assert caplog.messages == [f"could not publish the due job of task {first.key}"]

    async def test_a_due_job_that_cannot_be_read_is_dropped_and_delays_no_other(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        damaged, other = [await stage.created() for _ in range(2)]
        load = stage.backend.store.load

        async def loaded(ref: TaskRef) -> StoredTask | None:
            if ref == damaged.ref:
                raise StoredDataError("a record of another type")
            return await load(ref)

        monkeypatch.setattr(stage.backend.store, "load", loaded)
        await stage.sweep(replace(NOTHING, due=[damaged.key, other.key + "s", other.key]))
        assert stage.script.dropped == [
            (damaged.key, "a record of another type"),
            (other.key + "s", "it is not the key of its task"),
        ]
        assert stage.published == [other.task_id]

    async def test_a_job_that_is_published_at_this_moment_is_left_alone_and_delays_no_other(self, stage: Stage) -> None:
        first, second = [await stage.created() for _ in range(2)]
        stage.queue.held[first.task_id] = released = asyncio.Event()
        publishing = asyncio.create_task(stage.reaper.publish_due(first.key))
        await eventually(lambda: first.task_id not in stage.queue.held)
        await stage.sweep(due(first, second))
        assert stage.published == [second.task_id]
        released.set()
        await soon(publishing)
        assert stage.published == [second.task_id, first.task_id]

    async def test_a_store_that_does_not_answer_ends_the_sweep(self, stage: Stage) -> None:
        record = await stage.created()
        stage.backend.store.ledger.fail()
        with pytest.raises(StoreUnavailableError):
            await stage.sweep(due(record))


class TestOverdueJobs:
    """What a hint that jobs are due leads to."""

    @pytest.fixture(autouse=True)
    def two_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mcp_celery.engine.recovery.reaper.PUBLISHED_TOGETHER", 2)

    async def test_each_overdue_job_is_published_once(self, stage: Stage) -> None:
        records = [await stage.created() for _ in range(5)]
        stage.script.found = due(*records)
        await stage.reaper.publish_overdue()
        assert stage.published == [record.task_id for record in records]

    async def test_a_broker_that_does_not_answer_is_asked_for_no_more_than_those_that_go_together(
        self, stage: Stage
    ) -> None:
        refused, second, _ = records = [await stage.created() for _ in range(3)]
        stage.queue.trouble[refused.task_id] = QueueUnavailableError()
        stage.script.found = due(*records)
        await stage.reaper.publish_overdue()
        assert stage.published == [second.task_id]

    async def test_a_store_that_does_not_answer_for_one_job_does_not_interrupt_another(self, stage: Stage) -> None:
        unknown, record, _ = records = [await stage.created() for _ in range(3)]
        stage.script.unanswered = {unknown.key}
        stage.script.found = due(*records)
        stage.queue.held[record.task_id] = released = asyncio.Event()
        publishing = asyncio.create_task(stage.reaper.publish_overdue())
        await eventually(lambda: record.task_id not in stage.queue.held)
        assert not publishing.done()
        released.set()
        with pytest.raises(StoreUnavailableError):
            await soon(publishing)
        assert stage.published == [record.task_id]


class TestExpiry:
    async def test_the_open_job_is_revoked_once_and_all_is_forgotten_a_lease_later(
        self, stage: Stage, caplog: pytest.LogCaptureFixture
    ) -> None:
        task = Expiring(a_record().key, 1, leg=2, status="working", worker="w1")
        with caplog.at_level(logging.INFO):
            await stage.sweep(expiring(task))
            assert stage.queue.revokes == []
            for left_ms in (0, -1, -5_999):
                await stage.sweep(expiring(Expiring(task.key, left_ms)))
        assert stage.queue.revokes == [(task.open_job_ids, True)]
        assert caplog.messages == [f"job {task.job_ids[0]} is revoked: its task has outlived its time to live"]
        assert (stage.thrown_away, stage.script.forgotten) == ([], [])
        await stage.sweep(expiring(Expiring(task.key, -6_000)))
        assert stage.thrown_away == task.job_ids
        assert stage.script.forgotten == [replace(task, status=None)]
        assert len(stage.queue.revokes) == 1

    @pytest.mark.parametrize("terminate", [True, False])
    async def test_exposed_jobs_that_run_are_ended_where_that_is_wanted(self, stage: Stage, *, terminate: bool) -> None:
        task = Expiring(a_record().key, 1, status="working", work=ForeignWork(parts=2, may_terminate=terminate))
        await stage.sweep(expiring(task))
        await stage.sweep(expiring(Expiring(task.key, 0)))
        assert stage.queue.revokes == [(task.job_ids, terminate)]

    async def test_a_result_that_a_job_stores_while_it_is_ended_is_forgotten_later(self, stage: Stage) -> None:
        task, ended = (
            Expiring(a_record().key, 0, status="working"),
            Expiring(a_record().key, -6_000, status="completed"),
        )
        await stage.sweep(expiring(task))
        await stage.sweep(expiring(Expiring(task.key, -6_000), ended))
        stage.thrown_away.clear()
        over_at = stage.now
        stage.now = over_at + 11.999
        await stage.sweep(expiring())
        assert stage.thrown_away == []
        stage.now = over_at + 12
        for _ in range(2):
            await stage.sweep(expiring())
        assert stage.thrown_away == task.job_ids

    async def test_of_more_late_results_than_a_process_remembers_only_the_newest_are_forgotten(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mcp_celery.engine.recovery.reaper.MAX_LATE", 2)
        stage = Stage(monkeypatch)
        tasks = [Expiring(a_record().key, 0, status="working") for _ in range(3)]
        await stage.sweep(expiring(*tasks))
        for task in tasks:
            await stage.sweep(expiring(Expiring(task.key, -6_000)))
        stage.thrown_away.clear()
        stage.now += 12
        await stage.sweep(expiring())
        assert stage.thrown_away == [job_id for task in tasks[1:] for job_id in task.job_ids]

    async def test_only_the_result_of_an_expired_task_that_had_ended_is_forgotten(self, stage: Stage) -> None:
        task = Expiring(a_record().key, -6_000)
        assert await stage.sweep(expiring(task)) is False
        assert (stage.queue.revokes, stage.thrown_away, stage.script.forgotten) == ([], task.job_ids, [task])

    async def test_the_last_known_state_of_an_expiring_task_counts(self, stage: Stage) -> None:
        task = Expiring(a_record().key, 2, status="working")
        await stage.sweep(expiring(task))
        await stage.sweep(expiring(replace(task, left_ms=1, status=None)))
        await stage.sweep(expiring(Expiring(task.key, 0)))
        assert stage.queue.revokes == []

    async def test_what_the_store_knows_of_an_expired_task_is_newer_than_the_sweep_before(self, stage: Stage) -> None:
        cancelled, moved = (Expiring(a_record().key, 1, status="working", worker="w1") for _ in range(2))
        await stage.sweep(expiring(cancelled, moved))
        later = [replace(cancelled, left_ms=0, status="cancelled"), replace(moved, left_ms=0, leg=2, worker="w2")]
        for left_ms in (0, -1, -6_000):
            await stage.sweep(expiring(*(replace(one, left_ms=left_ms) for one in later)))
        assert stage.queue.revokes == [(later[1].open_job_ids, True)]
        assert [(one.worker, one.status) for one in stage.script.forgotten] == [("w1", "cancelled"), ("w2", None)]

    async def test_a_reaper_forgets_expiring_tasks_when_another_process_takes_over(self, stage: Stage) -> None:
        task = Expiring(a_record().key, 1, status="working")
        await stage.sweep(expiring(task))
        stage.script.found = None
        assert await stage.reaper.sweep() is False
        await stage.sweep(expiring(Expiring(task.key, 0)))
        assert stage.queue.revokes == []

    @pytest.mark.parametrize(("over", "more"), [(1, False), (2, True), (3, True)])
    async def test_a_full_batch_of_what_is_over_calls_for_another_sweep(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, over: int, *, more: bool
    ) -> None:
        monkeypatch.setattr("mcp_celery.engine.recovery.reaper.BATCH", 2)
        tasks = [Expiring(a_record().key, -6_000) for _ in range(over)]
        waiting = [Expiring(a_record().key, left_ms) for left_ms in (-5_999, 0, 6_000)]
        assert await stage.sweep(expiring(*tasks, *waiting)) is more


class TestAbandonedTasks:
    async def test_an_abandoned_task_is_cancelled_after_every_owner_had_time_to_be_noted(self, stage: Stage) -> None:
        record = await stage.created(abandon_after_ms=1_500)
        found = replace(NOTHING, abandoned=[record.key], at_ms=1_000)
        stage.script.attended = {record.key: 1_000}
        await stage.sweep(found)
        assert (stage.queue.revokes, stage.script.not_attended) == ([], [])
        await stage.trusted_sweep(found)
        stored = await stage.backend.store.load(record.ref)
        assert stored is not None
        assert stored.record.status == "cancelled"
        assert stage.queue.revokes == [([record.job_id], True)]
        assert stage.script.not_attended == [record.key]

    @pytest.mark.parametrize("terminate", [True, False])
    async def test_abandoned_exposed_jobs_are_ended_where_that_is_wanted(
        self, stage: Stage, *, terminate: bool
    ) -> None:
        work = ForeignWork(parts=2, may_terminate=terminate)
        record = await stage.created(abandon_after_ms=1_500, work=work)
        stage.script.attended = {record.key: 1_000}
        await stage.trusted_sweep(replace(NOTHING, abandoned=[record.key], at_ms=1_000))
        assert stage.queue.revokes == [(list(record.job_ids), terminate)]

    @pytest.mark.parametrize("end", ["completed", "deleted"])
    async def test_a_task_that_ends_before_it_could_be_cancelled_has_no_job_revoked(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, end: str
    ) -> None:
        record = await stage.created(abandon_after_ms=1_500)
        stage.script.attended = {record.key: 1_000}
        store, cancel = stage.backend.store, stage.backend.store.change

        async def ended_before(ref: TaskRef, change: Change) -> Changed | None:
            if end == "completed":
                assert await cancel(ref, Change(to="completed"))
            else:
                assert await store.delete(ref)
            return await cancel(ref, change)

        monkeypatch.setattr(store, "change", ended_before)
        with caplog.at_level(logging.INFO):
            await stage.trusted_sweep(replace(NOTHING, abandoned=[record.key], at_ms=1_000))
        assert (stage.queue.revokes, caplog.messages) == ([], [])
        assert stage.script.not_attended == [record.key]

    @pytest.mark.parametrize("until_ms", [None, 1_001])
    async def test_a_task_whose_owner_is_back_is_left_alone(self, stage: Stage, until_ms: int | None) -> None:
        record = await stage.created(abandon_after_ms=1_500)
        if until_ms is not None:
            stage.script.attended = {record.key: until_ms}
        await stage.trusted_sweep(replace(NOTHING, abandoned=[record.key], at_ms=1_000))
        stored = await stage.backend.store.load(record.ref)
        assert stored is not None
        assert stored.record.is_open
        assert stage.script.not_attended == []

    @pytest.mark.parametrize("fault", ["newer", "refused", "damaged"])
    async def test_a_task_that_another_process_may_be_able_to_read_is_left_to_it(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, fault: Fault
    ) -> None:
        record = await stage.created(abandon_after_ms=1_500)
        stage.script.attended = {record.key: 1_000}

        async def loaded(_: TaskRef) -> None:
            raise StoredDataError("as the test says", fault)

        monkeypatch.setattr(stage.backend.store, "load", loaded)
        await stage.trusted_sweep(replace(NOTHING, abandoned=[record.key], at_ms=1_000))
        assert stage.script.not_attended == ([record.key] if fault == "damaged" else [])

    async def test_tasks_that_have_ended_are_gone_or_are_never_abandoned_are_forgotten(self, stage: Stage) -> None:
        done, never = await stage.created(abandon_after_ms=1), await stage.created()
        await stage.backend.store.change(done.ref, Change(to="completed"))
        keys = [done.key, never.key, a_record().key]
        stage.script.attended = dict.fromkeys(keys, 0)
        await stage.trusted_sweep(replace(NOTHING, abandoned=keys, at_ms=1_000))
        assert stage.script.not_attended == keys
        assert stage.queue.revokes == []


class TestElection:
    async def test_each_reaper_process_has_one_name(self, stage: Stage) -> None:
        await stage.sweep(NOTHING)
        await stage.reaper.resign()
        ((name, policy),) = stage.script.sweeps
        assert stage.script.resigned == [name]
        assert len(name) == 16
        assert policy == POLICY

    async def test_a_store_that_does_not_answer_ends_the_election_by_itself(self, stage: Stage) -> None:
        stage.script.fails = StoreUnavailableError()
        await stage.reaper.resign()
        assert len(stage.script.resigned) == 1


class TestRun:
    """Sweeping for ever, with a test's steps instead of the pauses."""

    @pytest.fixture
    def run(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Run:
        async def run(*steps: Callable[[], object]) -> list[float]:
            """Run, with one step in each pause.

            Returns:
                How long each pause would have been.
            """
            pauses: list[float] = []

            async def pause(seconds: float) -> None:
                if len(pauses) == len(steps):
                    raise EndError
                steps[len(pauses)]()
                pauses.append(seconds)

            with monkeypatch.context() as patched:
                patched.setattr("mcp_celery.engine.recovery.reaper.asyncio.sleep", pause)
                with pytest.raises(EndError):
                    await stage.reaper.run()
            return pauses

        return run

    async def test_the_reaper_sweeps_at_each_heartbeat(self, stage: Stage, run: Run) -> None:
        assert await run(nothing, nothing) == [2.0, 2.0]
        assert len(stage.script.sweeps) == 3

    async def test_the_reaper_sweeps_again_at_once_while_there_is_more(
        self, stage: Stage, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mcp_celery.engine.recovery.reaper.BATCH", 1)
        stage.script.queued = [expiring(Expiring(a_record().key, -6_000)), expiring(Expiring(a_record().key, -6_000))]
        assert await run(nothing) == [2.0]
        assert len(stage.script.sweeps) == 4

    @pytest.mark.parametrize(("pause", "trusted"), [(4.0, ["w1"]), (4.1, [])])
    async def test_a_reaper_that_was_suspended_trusts_no_death_before_another_lease(
        self, stage: Stage, run: Run, pause: float, trusted: list[str]
    ) -> None:
        await stage.sweep(NOTHING)
        stage.now += LEASE_SECONDS - pause

        def stand_still() -> None:
            stage.now += pause
            stage.script.found = dead("w1")

        await run(stand_still)
        assert stage.script.buried == trusted

    async def test_a_reaper_that_was_suspended_trusts_deaths_after_another_lease(self, stage: Stage, run: Run) -> None:
        await stage.sweep(NOTHING)
        stage.now += LEASE_SECONDS

        def stand_still() -> None:
            stage.now += 4.1
            stage.script.found = dead("w1")

        def go_on() -> None:
            assert stage.script.buried == []
            stage.now += LEASE_SECONDS / 3

        await run(stand_still, go_on, go_on, go_on)
        assert stage.script.buried == ["w1"]

    async def test_after_an_outage_of_the_store_no_death_is_trusted_for_a_lease(self, stage: Stage, run: Run) -> None:
        await stage.sweep(NOTHING)
        stage.now += LEASE_SECONDS
        stage.script.fails = StoreUnavailableError()

        def come_back() -> None:
            stage.script.fails, stage.script.found = None, dead("w1")

        assert await run(come_back, nothing) == [2.0, 2.0]
        assert stage.script.buried == []

    async def test_after_a_failover_no_death_is_trusted_for_a_lease(self, stage: Stage) -> None:
        """The new master may lack the last heartbeats of live workers."""
        await stage.sweep(NOTHING)
        stage.now += LEASE_SECONDS
        await stage.sweep(replace(dead("w1"), after_failover=True))
        stage.now += LEASE_SECONDS - 0.001
        await stage.sweep(dead("w1"))
        assert stage.script.buried == []
        stage.now += 0.001
        await stage.sweep(dead("w1"))
        assert stage.script.buried == ["w1"]

    async def test_a_sweep_that_fails_is_logged_and_the_next_one_is_made(
        self, stage: Stage, run: Run, caplog: pytest.LogCaptureFixture
    ) -> None:
        await stage.sweep(NOTHING)
        stage.now += LEASE_SECONDS
        stage.script.fails = RuntimeError("unforeseen")

        def come_back() -> None:
            stage.script.fails, stage.script.found = None, dead("w1")

        assert await run(come_back) == [2.0]
        assert caplog.messages[0] == "a sweep failed"
        assert stage.script.buried == ["w1"], "the store answered, so the living could say that they live"


def nothing() -> None:
    """What happens in most pauses."""
