"""Exposed jobs as the engine sees them: each state that is stored becomes what the task's owner is told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, tzinfo
from typing import Any

import pytest
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from mcp_celery.config import TaskConfig
from mcp_celery.engine import (
    MAX_MESSAGE_CHARS,
    UNREADABLE,
    UNSEALED_RESULTS,
    Change,
    DueTasks,
    ExposedTasks,
    ForeignPlan,
    ForeignWork,
    JSONObject,
    Progress,
    StoredResult,
    Submission,
    TaskEngine,
    TaskRecord,
    TaskView,
)
from mcp_celery.engine.followup_jobs import as_itself
from mcp_celery.engine.foreign.poller import BATCH_JOBS, Watcher
from mcp_celery.engine.foreign.started import Beginnings
from mcp_celery.engine.reconcile import Settling
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.errors import QueueUnavailableError, ResultUnavailableError, StoreUnavailableError
from mcp_celery.server.connections import ended
from mcp_celery.testing import MemoryTaskResults
from tests.support.waiting import eventually
from tests.support.worlds import ALICE, LIMITS, SNAPSHOT, Watchful, World, a_record, a_submission

pytestmark = pytest.mark.anyio


def publish(_record: TaskRecord, _producer: object) -> None:
    """The queue in memory publishes nothing."""


class Exposure:
    """Exposes whatever is asked for, as so many jobs."""

    def __init__(self, work: ForeignWork) -> None:
        self.work = work

    async def plan(self, submission: Submission) -> ForeignPlan | None:
        if submission.component == "own":
            return None
        return ForeignPlan("shop.sell", self.work, publish, expires=submission.config.expires)

    def returned(self, component: str, value: Any) -> JSONObject:
        if value == "unfit":
            raise ValueError(value)
        return {"content": [{"type": "text", "text": repr(value)}]}

    def raised(self, component: str, exception_name: str, arguments: Sequence[Any]) -> JSONObject:
        return {"content": [{"type": "text", "text": f"{exception_name}{list(arguments)}"}], "isError": True}


class Shop:
    """An engine over a world, with a result backend that stands apart."""

    def __init__(
        self,
        world: World,
        work: ForeignWork | None = None,
        queue: Watchful | None = None,
        exposure: Exposure | None = None,
        most_bytes: int = 1_000_000,
    ) -> None:
        self.world = world
        self.queue = queue or Watchful(world.store)
        self.results = MemoryTaskResults()
        exposure = exposure or Exposure(work or ForeignWork())
        self.exposed = ExposedTasks(exposure, self.results, max_result_bytes=most_bytes)
        self.engine = TaskEngine(
            store=world.store,
            queue=self.queue,
            bus=world.bus,
            results=self.results,
            limits=LIMITS,
            answer_version=LATEST_HANDSHAKE_VERSION,
            exposed=self.exposed,
        )

    async def submit(self, config: TaskConfig | None = None) -> TaskRecord:
        return await self.engine.submit(a_submission(config=config))

    async def get(self, record: TaskRecord) -> TaskView:
        return await self.engine.get(ALICE, record.task_id)


async def test_a_result_that_is_too_large_fails_the_task_and_says_so(world: World) -> None:
    shop = Shop(world, most_bytes=100)
    for value, status in (("x" * 10, "completed"), ("x" * 100, "failed")):
        record = await shop.submit()
        shop.results.put(record.job_id, "SUCCESS", value)
        view = await shop.get(record)
        assert view.record.status == status
    assert view.record.error is not None
    assert "more than MCP_CELERY_MAX_RESULT_BYTES allows (100)" in view.record.error.message


def raised(name: str, *arguments: object) -> dict[str, object]:
    return {"exc_type": name, "exc_message": list(arguments)}


async def test_nothing_of_the_caller_is_kept_for_a_worker_that_could_not_read_it(world: World) -> None:
    shop = Shop(world)
    record = await shop.submit()
    assert (record.work, record.job_name) == (ForeignWork(), "shop.sell")
    stored = await world.store.load(record.ref)
    assert stored is not None
    assert stored.record == record
    snapshot = await world.store.snapshot(record.ref)
    assert snapshot is not None
    assert (snapshot.params, snapshot.headers, snapshot.session_id) == ({}, None, None)


@pytest.mark.parametrize(
    ("state", "value", "message", "progress"),
    [
        ("PENDING", None, None, None),
        ("RECEIVED", None, None, None),
        ("STARTED", {"pid": 7, "hostname": "w"}, None, None),
        ("RETRY", raised("ConnectionError", "secret"), "Trying again", None),
        ("PROGRESS", {"current": 3, "total": 10, "message": "reading"}, "reading", Progress(3, 10)),
        ("PROGRESS", {"current": 3, "total": 10}, "3 of 10", Progress(3, 10)),
        ("PROGRESS", {"current": 2.5}, "2.5", Progress(2.5)),
        ("PROGRESS", {"done": 1, "total": 2, "status": "half"}, "half", Progress(1, 2)),
        ("PROGRESS", {"current": "three", "total": True}, "PROGRESS", None),
        ("PROGRESS", {"current": float("nan"), "message": ""}, "PROGRESS", None),
        ("PROGRESS", "half", "half", None),
        ("PROGRESS", None, "PROGRESS", None),
        ("UPLOADING", {"percent": 50}, "UPLOADING", None),
        ("UPLOADING", {"message": "m" * 3_000}, "m" * MAX_MESSAGE_CHARS, None),
    ],
)
async def test_message_and_progress_of_a_running_job_become_the_tasks(
    world: World, state: str, value: object, message: str | None, progress: Progress | None
) -> None:
    shop = Shop(world)
    record = await shop.submit()
    shop.results.stored[record.job_id] = StoredResult(state, value)
    seen = (await shop.get(record)).record
    assert (seen.status, seen.status_message, seen.progress) == ("working", message, progress)
    again = (await shop.get(record)).record
    assert again == seen  # the same is not told twice


@pytest.mark.parametrize(
    ("state", "value", "status", "told"),
    [
        ("SUCCESS", {"sum": 3}, "completed", "{'sum': 3}"),
        ("SUCCESS", None, "completed", "None"),
        ("FAILURE", raised("SoldOutError", "no tea"), "completed", "SoldOutError['no tea']"),
        ("FAILURE", raised("OperationalError", "their database"), "completed", "OperationalError['their database']"),
        ("FAILURE", raised("TimeLimitExceeded", 1), "failed", "The job exceeded its time limit and was ended"),
        (
            "FAILURE",
            raised("NotRegistered", "shop.sell"),
            "failed",
            "No worker of the queue knows this job: they run",
        ),
        ("REVOKED", raised("TaskRevokedError", "terminated"), "cancelled", "The job was revoked"),
        ("REVOKED", raised("TaskRevokedError", "expired"), "failed", "The job expired before a worker could start it"),
        ("FAILURE", UNREADABLE.value, "failed", "The job's result is stored in a form that the server cannot read"),
    ],
)
async def test_the_state_of_a_job_decides_how_its_task_ends(
    world: World, state: str, value: object, status: str, told: str
) -> None:
    shop = Shop(world)
    record = await shop.submit()
    shop.results.stored[record.job_id] = StoredResult(state, value)
    view = await shop.get(record)
    assert view.record.status == status
    if view.result is not None:
        assert view.result["content"][0]["text"] == told
        assert view.record.is_error == (state == "FAILURE")
        assert (await shop.get(record)).result == view.result
    else:
        assert (view.record.status_message or "").startswith(told)


async def test_an_outcome_after_a_cancel_is_dropped(world: World) -> None:
    shop = Shop(world, ForeignWork(parts=3, gathered=3))
    record = await shop.submit()
    await shop.engine.cancel(ALICE, record.task_id)
    assert shop.queue.revoked == [record.job_id, f"{record.job_id}!2", f"{record.job_id}!3"]
    for job_id in record.job_ids:
        shop.results.put(job_id, "SUCCESS", 1)
    assert (await shop.get(record)).record.status == "cancelled"


async def test_a_job_that_waits_too_long_has_failed_and_one_that_began_has_not(world: World) -> None:
    shop = Shop(world)
    begun, waiting = [await shop.submit(TaskConfig(expires=0.05)) for _ in range(2)]
    shop.results.stored[begun.job_id] = StoredResult("STARTED", None)
    assert (await shop.get(begun)).record.started_at_ms is not None

    async def has_failed() -> bool:
        return (await shop.get(waiting)).record.status == "failed"

    await eventually(has_failed)
    del shop.results.stored[begun.job_id]
    assert (await shop.get(begun)).record.status == "working"


@pytest.mark.parametrize("in_zone", [None, UTC])
async def test_a_job_may_expire_at_a_time(world: World, in_zone: tzinfo | None) -> None:
    class Dated(Exposure):
        async def plan(self, submission: Submission) -> ForeignPlan | None:
            return ForeignPlan("shop.sell", self.work, publish, expires=datetime.fromtimestamp(1_900_000_000, in_zone))

    shop = Shop(world, exposure=Dated(ForeignWork()))
    assert (await shop.submit(TaskConfig(expires=1))).start_before_ms == 1_900_000_000_000


async def test_a_result_that_cannot_be_read_is_not_one_that_never_began(world: World) -> None:
    shop = Shop(world)
    record = await shop.submit(TaskConfig(expires=0.001))
    shop.results.stored[record.job_id] = UNREADABLE
    assert ((await shop.get(record)).record.status_message or "").startswith("The job's result is stored in a form")


async def test_only_results_that_are_returned_have_to_be_readable(world: World) -> None:
    shop = Shop(world, ForeignWork(parts=2))
    record = await shop.submit()
    last, first = record.job_ids
    shop.results.stored[first] = UNREADABLE
    assert (await shop.get(record)).record.status_message == "0 of 2 jobs done"
    shop.results.put(last, "SUCCESS", "b")
    assert (await shop.get(record)).result == {"content": [{"type": "text", "text": "'b'"}]}


async def test_a_task_of_our_own_is_not_failed_for_a_result_that_this_server_cannot_read(world: World) -> None:
    shop = Shop(world)
    record = await shop.engine.submit(replace(a_submission(), component="own"))
    shop.results.stored[record.job_id] = UNREADABLE
    assert (await shop.get(record)).record.status == "working"
    await world.store.change(record.ref, Change(to="completed"))
    with pytest.raises(ResultUnavailableError):
        await shop.get(record)


async def test_parts_are_counted_and_gathered(world: World) -> None:
    shop = Shop(world, ForeignWork(parts=3, gathered=2))
    record = await shop.submit()
    first, second, third = record.job_ids
    assert (await shop.get(record)).record.status_message is None
    shop.results.put(third, "SUCCESS", "c")
    counted = (await shop.get(record)).record
    assert (counted.status_message, counted.progress) == ("1 of 3 jobs done", Progress(1, 3))
    shop.results.put(second, "SUCCESS", "b")
    shop.results.put(first, "SUCCESS", "a")
    view = await shop.get(record)
    assert view.result == {"content": [{"type": "text", "text": "['a', 'b']"}]}
    assert (view.record.status_message, view.record.progress) == ("3 of 3 jobs done", Progress(3, 3))


@pytest.mark.parametrize(
    ("state", "value", "kept"),
    [("RETRY", raised("ConnectionError", "secret"), None), ("PROGRESS", {"message": "reading"}, "reading")],
)
async def test_only_the_last_message_of_a_job_is_kept(
    world: World, state: str, value: object, kept: str | None
) -> None:
    shop = Shop(world)
    record = await shop.submit()
    shop.results.stored[record.job_id] = StoredResult(state, value)
    assert (await shop.get(record)).record.status_message is not None
    shop.results.put(record.job_id, "SUCCESS", "done")
    assert (await shop.get(record)).record.status_message == kept


async def test_the_exception_of_a_part_counts_and_not_what_celery_makes_of_it(world: World) -> None:
    shop = Shop(world, ForeignWork(parts=3))
    record = await shop.submit()
    body, first, _second = record.job_ids
    shop.results.put(body, "FAILURE", raised("ChordError", "Dependency … raised"))
    shop.results.put(first, "FAILURE", raised("SoldOutError", "no tea"))
    result = (await shop.get(record)).result
    assert result is not None
    assert result["content"][0]["text"] == "SoldOutError['no tea']"


async def test_work_that_seems_unpublished_is_revoked(world: World) -> None:
    """Its message may arrive yet, and its worker would not ask us whether it may run."""

    class Unsure(Watchful):
        async def publish(self, record: TaskRecord, submission: Submission) -> None:
            await super().publish(record, submission)
            raise QueueUnavailableError

    shop = Shop(world, queue=Unsure(world.store))
    with pytest.raises(QueueUnavailableError):
        await shop.submit()
    ((record, _),) = shop.queue.published
    assert await world.store.load(record.ref) is None
    # The client is not kept waiting for the revoke.
    await eventually(lambda: shop.queue.revoked == [record.job_id], what="the job is revoked")


# --- The watcher


def watcher_of(shop: Shop, world: World, interval_ms: int = 60_000) -> Watcher:
    return Watcher(world.open_tasks(), shop.exposed, shop.engine.settling, interval_ms)


async def test_servers_share_the_tasks_that_are_due(world: World) -> None:
    shop = Shop(world)
    first, second = watcher_of(shop, world), watcher_of(shop, world)
    record = await shop.submit()
    await first.look()
    assert first.watches
    shop.results.put(record.job_id, "SUCCESS", 1)
    await second.look()
    stored = await world.store.load(record.ref)
    assert stored is not None
    assert stored.record.status == "working"  # it is the first one's until the next look
    second.hint(record.key)
    second.hint(replace(record, task_id="unknown").key)
    await second.look()
    stored = await world.store.load(record.ref)
    assert stored is not None
    assert stored.record.status == "completed"
    second.hint(record.key)
    await second.look()
    assert not second.watches
    assert (await world.open_tasks().due(0, 10)).open == 0


async def test_own_tasks_are_not_watched(world: World) -> None:
    shop = Shop(world)
    record = await shop.engine.submit(replace(a_submission(), component="own"))
    watcher = watcher_of(shop, world)
    watcher.hint(record.key)
    await watcher.look()
    assert (await world.open_tasks().due(0, 10)).open == 0


async def test_a_task_that_cannot_be_recorded_delays_no_other(world: World, caplog: pytest.LogCaptureFixture) -> None:
    shop = Shop(world)
    records = [await shop.submit() for _ in range(3)]
    for record in records:
        shop.results.put(record.job_id, "SUCCESS", "unfit" if record is records[0] else 1)
    await watcher_of(shop, world).look()
    statuses = [stored.record.status for one in records if (stored := await world.store.load(one.ref))]
    assert statuses == ["working", "completed", "completed"]
    assert "could not record the outcome of the job of task" in caplog.text


async def test_the_poller_continues_after_a_store_and_a_backend_did_not_answer() -> None:
    class Away:
        looks = 0

        async def due(self, interval_ms: int, limit: int) -> DueTasks:
            self.looks += 1
            if self.looks == 1:
                raise StoreUnavailableError
            return DueTasks(1, [replace(a_record(), work=ForeignWork())])

        async def hurry(self, keys: Sequence[str]) -> None: ...

    class Silent:
        asked = 0

        async def read_many(self, job_ids: Sequence[str]) -> Mapping[str, StoredResult | None]:
            self.asked += 1
            return {}

    away, silent = Away(), Silent()
    exposed = ExposedTasks(Exposure(ForeignWork()), silent)
    watcher = Watcher(away, exposed, None, 1)  # pyright: ignore[reportArgumentType] - nothing is ever settled
    watching = asyncio.create_task(watcher.run())
    await eventually(lambda: silent.asked > 2)
    await ended(watching)


async def test_the_ids_of_many_tasks_are_derived_once_each(world: World) -> None:
    """They are digests, derived on the event loop."""
    derived: list[str] = []

    class Counted(TaskRecord):
        @property
        def job_ids(self) -> list[str]:
            derived.append(self.task_id)
            return super().job_ids

    values: dict[str, Any] = {one.name: getattr(a_record(), one.name) for one in fields(TaskRecord)}
    one_job = replace(Counted(**values), work=ForeignWork())
    many = [replace(one_job, task_id=f"{number}") for number in range(BATCH_JOBS * 2 + 1)]

    class Due:
        async def due(self, interval_ms: int, limit: int) -> DueTasks:
            return DueTasks(len(many), many)

        async def hurry(self, keys: Sequence[str]) -> None: ...

    asked: list[int] = []

    class Idle:
        async def read_many(self, job_ids: Sequence[str]) -> Mapping[str, StoredResult | None]:
            asked.append(len(job_ids))
            return dict.fromkeys(job_ids)

    exposed = ExposedTasks(Exposure(ForeignWork()), Idle())
    settling = Settling(world.store, None, exposed=exposed, interval_ms=0, seals=UNSEALED_RESULTS)
    await Watcher(Due(), exposed, settling, 1).look()
    assert asked == [BATCH_JOBS, BATCH_JOBS, 1]
    assert len(derived) == len(many)


async def test_an_expired_task_is_revoked_and_forgotten_with_all_its_parts(world: World) -> None:
    class Bin:
        forgotten: Sequence[str] = ()

        async def forget(self, job_ids: Sequence[str]) -> None:
            self.forgotten = [*self.forgotten, *job_ids]

    shop, forgotten = Shop(world, ForeignWork(parts=2)), Bin()
    reaper = Reaper(
        store=world.recovery(),
        tasks=world.store,
        queue=shop.queue,
        results=forgotten,
        declared=as_itself,
        policy=RecoveryPolicy(heartbeat_ms=100, max_redeliveries=1),
    )
    record = await shop.engine.submit(a_submission(ttl_ms=1_000))

    async def is_forgotten() -> bool:
        await reaper.sweep()
        return list(forgotten.forgotten) == record.job_ids

    await eventually(is_forgotten)
    assert shop.queue.revoked == record.job_ids
    assert [published for published, _ in shop.queue.published] == [record]


async def test_that_a_job_began_is_noted_once_and_of_open_exposed_jobs_only(world: World) -> None:
    shop = Shop(world)
    record = await shop.submit(TaskConfig(expires=0.001))
    beginnings = Beginnings(world.store, {("tool", record.component)})
    await Beginnings(world.store, ()).note(record.key)
    assert (await started(world, record)) is None
    await beginnings.note(record.key)
    begun = await started(world, record)
    assert begun is not None
    await beginnings.note(record.key)
    assert await started(world, record) == begun
    assert (await shop.get(record)).record.status == "working"  # though no result says that it began
    own = a_record()
    await world.store.create(own, SNAPSHOT)
    await Beginnings(world.store, {("tool", own.component)}).note(own.key)
    assert await started(world, own) is None
    await beginnings.note(record.key.replace(record.task_id, "0" * 32))


async def started(world: World, record: TaskRecord) -> int | None:
    stored = await world.store.load(record.ref)
    return None if stored is None else stored.record.started_at_ms
