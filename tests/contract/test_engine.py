"""The engine over either store: what a caller gets, in which order things become true, and who is told."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import pytest
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from mcp_celery.config import TaskConfig
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    Caller,
    Change,
    Claim,
    Idempotency,
    JobLedger,
    JobOutcome,
    QueueMessage,
    Quota,
    Start,
    TaskBus,
    TaskEngine,
    TaskRecord,
    TaskRef,
    TaskStatus,
    TaskStore,
    now_ms,
)
from mcp_celery.engine.outcome import FAILURE_REASONS, UNKNOWN_REASON
from mcp_celery.errors import (
    QueueUnavailableError,
    ResultUnavailableError,
    StoreUnavailableError,
    TaskNotFoundError,
)
from mcp_celery.store.inspection import RedisInspection
from mcp_celery.testing import MemoryBackend, MemoryTaskQueue
from tests.support.waiting import eventually, soon
from tests.support.worlds import (
    ALICE,
    LIMITS,
    SNAPSHOT,
    RedisWorld,
    Watchful,
    World,
    a_record,
    a_submission,
    engine_of,
    redis_world,
)

pytestmark = pytest.mark.anyio

BOB = Caller("client-a|bob", ALICE.issuer)
ANYONE = Caller()
OUTCOME = JobOutcome({"content": [{"type": "text", "text": "42"}]}, "done")
JOB_ERROR = {"exc_type": "JobFailedError", "exc_message": [-32001, "No such year", {"year": 1}]}
both_places = pytest.mark.parametrize("results_apart", [False, True], ids=["results at hand", "results apart"])


def end(world: World, record: TaskRecord, outcome: JobOutcome = OUTCOME) -> None:
    """The job returns: Celery stores its result, then its worker tells of it."""
    world.put_result(record.job_id, "SUCCESS", outcome)
    changed = world.ledger.change(record.ref, Change(to="completed", attempt=record.attempt))
    assert changed is not None


class TestSubmit:
    async def test_the_record_is_durable_before_the_job_is_published(
        self, world: World, engine: TaskEngine, queue: Watchful
    ) -> None:
        record = await engine.submit(a_submission())
        assert queue.seen == ["working"]
        assert [published for published, _ in queue.published] == [record]
        assert (await engine.get(ALICE, record.task_id)).record == record

    async def test_the_record_says_what_was_asked(self, engine: TaskEngine) -> None:
        before = now_ms()
        record = await engine.submit(a_submission(config=TaskConfig(poll_interval=250)))
        assert (record.scope, record.issuer) == (ALICE.scope, ALICE.issuer)
        assert (record.task_type, record.component) == ("tool", "build_report")
        assert record.status == "working"
        assert record.poll_interval_ms == 250
        assert before <= record.created_at_ms == record.updated_at_ms <= now_ms()

    async def test_ids_are_256_random_bits(self, engine: TaskEngine) -> None:
        ids = {(await engine.submit(a_submission())).task_id for _ in range(20)}
        assert len(ids) == 20
        assert all(len(one) == 43 for one in ids)

    async def test_the_body_gets_the_snapshot_of_the_request(self, world: World, engine: TaskEngine) -> None:
        snapshot = TaskContextSnapshot(protocol_version="2026-07-28", request_id=7)
        record = await engine.submit(replace(a_submission(), snapshot=snapshot))
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1)) == snapshot

    @pytest.mark.parametrize(
        ("asked", "declared", "granted"),
        [
            (None, None, LIMITS.default_ttl_ms),
            (5_000, None, 5_000),
            (None, 7_000, 7_000),
            (5_000, 7_000, 5_000),
            (LIMITS.max_ttl_ms + 1, None, LIMITS.max_ttl_ms),
            (None, LIMITS.max_ttl_ms + 1, LIMITS.max_ttl_ms),
            (10**30, None, LIMITS.max_ttl_ms),
        ],
    )
    async def test_the_ttl_granted_is_the_one_asked_within_the_limit(
        self, engine: TaskEngine, asked: int | None, declared: int | None, granted: int
    ) -> None:
        record = await engine.submit(a_submission(ttl_ms=asked, config=TaskConfig(ttl=declared)))
        assert record.ttl_ms == granted
        assert (await engine.get(ALICE, record.task_id)).record.ttl_ms == granted

    @pytest.mark.parametrize("asked", [0, -1, -(10**30)])
    def test_a_ttl_of_nothing_is_the_shortest_there_is(self, asked: int) -> None:
        assert LIMITS.granted_ttl_ms(asked, TaskConfig()) == 1

    async def test_a_queue_that_fails_takes_the_record_back(
        self, world: World, engine: TaskEngine, queue: Watchful
    ) -> None:
        queue.fail()
        with pytest.raises(QueueUnavailableError, match="no task was created") as error:
            await engine.submit(a_submission())
        assert error.value.code == -32603
        assert queue.seen == ["working"]
        assert await world.store.load(queue.asked[0]) is None
        assert world.told(queue.asked[0]) == 0

    async def test_a_client_that_hangs_up_half_way_leaves_no_record(
        self, world: World, engine: TaskEngine, queue: Watchful
    ) -> None:
        queue.hold()
        submitting = asyncio.create_task(engine.submit(a_submission()))
        ref = await eventually(lambda: queue.seen and queue.asked[0])
        assert isinstance(ref, TaskRef)
        submitting.cancel()
        assert isinstance((await asyncio.gather(submitting, return_exceptions=True))[0], asyncio.CancelledError)
        assert await world.store.load(ref) is None
        assert queue.published == []


class TestSubmissionsThatNameTheirTask:
    NAMED = replace(a_submission(), task_id="tick-2026")

    async def test_repeated_submissions_make_one_task(self, engine: TaskEngine, queue: Watchful) -> None:
        first = await engine.submit(self.NAMED)
        again = [await engine.submit(self.NAMED) for _ in range(2)]
        assert again == [first, first]
        assert [published.task_id for published, _ in queue.published] == ["tick-2026"]
        assert (await engine.list(ALICE)).records == [first]

    async def test_simultaneous_submissions_make_one_task(self, world: World, engine: TaskEngine) -> None:
        await asyncio.gather(*[engine.submit(self.NAMED) for _ in range(5)])
        listed = (await engine.list(ALICE)).records
        assert [one.task_id for one in listed] == ["tick-2026"]
        # A second message of the same attempt, where there is one, begins nothing.
        assert await world.store.start(listed[0].ref, Start(attempt=1, retries=0, at_ms=1)) is not None
        assert await world.store.start(listed[0].ref, Start(attempt=1, retries=0, at_ms=2)) is None

    async def test_a_task_that_has_ended_is_not_made_again(
        self, world: World, engine: TaskEngine, queue: Watchful
    ) -> None:
        end(world, await engine.submit(self.NAMED))
        assert (await engine.submit(self.NAMED)).status == "completed"
        assert len(queue.published) == 1

    async def test_a_named_task_is_kept_where_the_broker_does_not_take_its_job(
        self, world: World, engine: TaskEngine, queue: Watchful
    ) -> None:
        queue.fail()
        with pytest.raises(QueueUnavailableError):
            await engine.submit(self.NAMED)
        stored = await world.store.load(queue.asked[0])
        assert stored is not None
        assert await engine.submit(self.NAMED) == stored.record

    async def test_another_owner_has_another_task(self, engine: TaskEngine) -> None:
        mine = await engine.submit(self.NAMED)
        theirs = await engine.submit(replace(self.NAMED, caller=BOB))
        assert mine.key != theirs.key
        assert (await engine.list(BOB)).records == [theirs]


class TestGet:
    @pytest.mark.parametrize("caller", [BOB, ANYONE, Caller(ALICE.scope, "https://other.example"), Caller(ALICE.scope)])
    async def test_foreign_and_missing_tasks_read_the_same(self, engine: TaskEngine, caller: Caller) -> None:
        record = await engine.submit(a_submission())
        foreign = await refusal(engine, caller, record.task_id)
        missing = await refusal(engine, caller, "x" * 43)
        assert foreign == missing
        assert record.task_id not in foreign[1]
        assert (await engine.get(ALICE, record.task_id)).record == record

    async def test_a_callers_task_is_not_an_anonymous_ones(self, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission(ANYONE))
        assert (await engine.get(ANYONE, record.task_id)).record == record
        assert await refusal(engine, ALICE, record.task_id) == await refusal(engine, ALICE, "x" * 43)

    @pytest.mark.parametrize(
        "task_id",
        ["", " ", "x" * 65, "x" * 10_240, "ü" * 10_240, "a:b", "*", "\0", "\n", "../../x", "lone \ud800", "%s{0}"],
        ids=["empty", "space", "65", "10k", "10k utf-8", "colon", "glob", "nul", "newline", "path", "lone", "format"],
    )
    async def test_an_id_of_any_form_reads_like_a_missing_one(
        self, engine: TaskEngine, task_id: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert await refusal(engine, ALICE, task_id) == await refusal(engine, ALICE, "x" * 43)
        async with engine.watch(ALICE, [task_id]) as watch:
            assert watch.accepted == []
        assert not [record for record in caplog.records if len(task_id) > 1 and task_id in record.getMessage()]

    async def test_an_expired_task_reads_like_a_missing_one(self, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission(ttl_ms=40))

        async def gone() -> bool:
            try:
                await engine.get(ALICE, record.task_id)
            except TaskNotFoundError:
                return True
            return False

        await eventually(gone)
        assert await refusal(engine, ALICE, record.task_id) == await refusal(engine, ALICE, "x" * 43)

    @both_places
    async def test_a_completed_task_has_its_result(self, world: World, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission())
        end(world, record)
        for _ in range(2):
            view = await engine.get(ALICE, record.task_id)
            assert (view.record.status, view.result) == ("completed", OUTCOME.result)

    @both_places
    async def test_a_deleted_result_is_reported_as_unavailable(self, world: World, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission())
        end(world, record)
        world.forget_result(record.job_id)
        with pytest.raises(ResultUnavailableError) as error:
            await engine.get(ALICE, record.task_id)
        assert error.value.code == -32603
        with pytest.raises(ResultUnavailableError):
            await soon(engine.wait(ALICE, record.task_id))
        assert (await engine.find(ALICE, record.task_id)).status == "completed"

    async def test_reading_changes_nothing(self, world: World, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission())
        for _ in range(3):
            assert (await engine.get(ALICE, record.task_id)).record == record
        assert world.told(record.ref) == 0


async def refusal(engine: TaskEngine, caller: Caller, task_id: str) -> tuple[int, str]:
    """Code and text with which every access to a task is refused."""
    refusals: set[tuple[int, str]] = set()
    for access in (engine.get, engine.find, engine.cancel, engine.wait):
        with pytest.raises(TaskNotFoundError) as error:
            await soon(access(caller, task_id))
        refusals.add((error.value.code, str(error.value)))
    (only,) = refusals
    return only


@both_places
class TestSettling:
    """The worker died, or lost the store, between storing the result and telling of it."""

    @pytest.mark.parametrize(
        ("state", "value", "status", "message"),
        [
            ("SUCCESS", OUTCOME, "completed", "done"),
            ("SUCCESS", "of another form", "failed", UNKNOWN_REASON),
            ("FAILURE", JOB_ERROR, "failed", "No such year"),
            ("FAILURE", {"exc_type": "WorkerLostError", "exc_message": ["x"]}, "failed",
             FAILURE_REASONS["WorkerLostError"]),
            ("REVOKED", {"exc_type": "TaskRevokedError", "exc_message": ["x"]}, "cancelled", "The job was revoked"),
        ],
        ids=["success", "unreadable", "json-rpc error", "lost", "revoked"],
    )  # fmt: skip
    async def test_an_open_task_whose_job_has_ended_is_settled_once(
        self, world: World, engine: TaskEngine, state: str, value: object, status: TaskStatus, message: str
    ) -> None:
        record = await engine.submit(a_submission())
        world.put_result(record.job_id, state, value)
        first = await engine.get(ALICE, record.task_id)
        assert (first.record.status, first.record.status_message) == (status, message)
        assert first.result == (OUTCOME.result if status == "completed" else None)
        assert await engine.get(ALICE, record.task_id) == first
        assert world.told(record.ref) == 1

    async def test_many_readers_at_once_settle_a_task_once(self, world: World, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission())
        world.put_result(record.job_id, "SUCCESS", OUTCOME)
        views = await asyncio.gather(*(engine.get(ALICE, record.task_id) for _ in range(30)))
        assert {json.dumps(view.result) for view in views} == {json.dumps(OUTCOME.result)}
        assert {view.record.revision for view in views} == {2}
        assert world.told(record.ref) == 1

    async def test_the_failure_of_an_attempt_before_the_current_one_settles_nothing(
        self, store_url: str, results_apart: bool
    ) -> None:
        """All attempts of a job store their results under one id."""
        async with redis_world(store_url, results_apart=results_apart) as world:
            engine = engine_of(world, Watchful(world.store))
            record = await engine.submit(a_submission())
            assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1))
            assert await RedisInspection(world.store).requeue(record, force=True) == "again"
            for state in ("FAILURE", "REVOKED"):
                world.put_result(record.job_id, state, JOB_ERROR)
                found = (await engine.get(ALICE, record.task_id)).record
                assert (found.status, found.attempt, found.redeliveries) == ("working", 2, 0)
            world.put_result(record.job_id, "SUCCESS", OUTCOME)
            assert (await engine.get(ALICE, record.task_id)).record.status == "completed"

    @pytest.mark.parametrize("state", ["PENDING", "STARTED", "RETRY"])
    async def test_a_job_that_has_not_ended_settles_nothing(self, world: World, engine: TaskEngine, state: str) -> None:
        record = await engine.submit(a_submission())
        world.put_result(record.job_id, state, None)
        assert (await engine.get(ALICE, record.task_id)).record == record
        assert world.told(record.ref) == 0

    async def test_a_late_success_does_not_undo_a_cancel(self, world: World, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission())
        await engine.cancel(ALICE, record.task_id)
        end(world, record)
        view = await engine.get(ALICE, record.task_id)
        assert (view.record.status, view.result) == ("cancelled", None)
        assert world.told(record.ref) == 1

    async def test_a_follower_sees_the_stored_end_at_its_next_check(
        self, world: World, engine: TaskEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mcp_celery.engine.subscription.RECHECK_SECONDS", 0.02)
        record = await engine.submit(a_submission())
        waiting = asyncio.create_task(engine.wait(ALICE, record.task_id))
        world.put_result(record.job_id, "SUCCESS", OUTCOME)
        assert (await soon(waiting)).result == OUTCOME.result
        assert world.told(record.ref) == 1


async def test_results_elsewhere_are_not_asked_for_at_every_read() -> None:
    backend = MemoryBackend()
    asked: list[str] = []

    class Counting:
        async def read(self, job_id: str) -> None:
            asked.append(job_id)

    engine = TaskEngine(
        store=backend.store, queue=backend.queue, bus=backend.bus, results=Counting(),
        limits=replace(LIMITS, settle_interval_ms=3_600_000), answer_version=LATEST_HANDSHAKE_VERSION,
    )  # fmt: skip
    record = await engine.submit(a_submission())
    for _ in range(5):
        await engine.get(ALICE, record.task_id)
    assert asked == []


class TestCancel:
    async def test_the_record_is_cancelled_before_the_job_is_revoked(
        self, world: World, engine: TaskEngine, queue: Watchful
    ) -> None:
        record = await engine.submit(a_submission())
        cancelled = await engine.cancel(ALICE, record.task_id)
        assert (cancelled.status, cancelled.status_message) == ("cancelled", "Cancelled by the client")
        assert queue.seen == ["working", "cancelled"]
        assert queue.revoked == [record.job_id]
        assert (await engine.get(ALICE, record.task_id)).record == cancelled
        assert world.told(record.ref) == 1

    async def test_a_job_that_comes_later_does_not_start(self, world: World, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission())
        await engine.cancel(ALICE, record.task_id)
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1)) is None

    @pytest.mark.parametrize("terminal", ["completed", "failed", "cancelled"])
    async def test_a_task_that_has_ended_stays_as_it_is(
        self, world: World, engine: TaskEngine, queue: Watchful, terminal: TaskStatus
    ) -> None:
        record = await engine.submit(a_submission())
        ended = await world.store.change(record.ref, Change(to=terminal, status_message="the end"))
        assert ended is not None
        assert await engine.cancel(ALICE, record.task_id) == ended.record
        assert queue.revoked == []
        assert world.told(record.ref) == 1

    async def test_of_many_at_once_one_changes_the_record(
        self, world: World, engine: TaskEngine, queue: Watchful
    ) -> None:
        record = await engine.submit(a_submission())
        answers = await asyncio.gather(*(engine.cancel(ALICE, record.task_id) for _ in range(20)))
        assert {one.status for one in answers} == {"cancelled"}
        assert set(queue.revoked) == {record.job_id}
        assert world.told(record.ref) == 1

    async def test_a_broker_that_is_gone_does_not_undo_a_cancel(self, engine: TaskEngine, queue: Watchful) -> None:
        record = await engine.submit(a_submission())
        queue.fail()
        assert (await engine.cancel(ALICE, record.task_id)).status == "cancelled"
        assert (await engine.get(ALICE, record.task_id)).record.status == "cancelled"


class TestWait:
    @both_places
    async def test_a_wait_ends_when_the_task_completes(self, world: World, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission())
        waiting = [asyncio.create_task(engine.wait(ALICE, record.task_id)) for _ in range(5)]
        await world.store.change(record.ref, Change(to="working", status_message="half"))
        end(world, record)
        views = await soon(asyncio.gather(*waiting))
        assert {view.record.status for view in views} == {"completed"}
        assert all(view.result == OUTCOME.result for view in views)

    async def test_a_wait_ends_when_the_task_is_cancelled(self, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission())
        waiting = asyncio.create_task(engine.wait(ALICE, record.task_id))
        cancelled = await engine.cancel(ALICE, record.task_id)
        assert (await soon(waiting)).record == cancelled

    @both_places
    async def test_a_wait_ends_at_once_when_the_task_has_ended(self, world: World, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission())
        end(world, record)
        assert (await soon(engine.wait(ALICE, record.task_id))).result == OUTCOME.result

    async def test_a_wait_ends_when_the_task_expires(self, engine: TaskEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mcp_celery.engine.subscription.RECHECK_SECONDS", 0.02)
        record = await engine.submit(a_submission(ttl_ms=60))
        with pytest.raises(TaskNotFoundError):
            await soon(engine.wait(ALICE, record.task_id))

    async def test_a_wait_can_be_given_up(self, world: World, engine: TaskEngine) -> None:
        record = await engine.submit(a_submission())
        with pytest.raises(TimeoutError):
            await soon(engine.wait(ALICE, record.task_id), seconds=0.02)
        end(world, record)
        assert (await soon(engine.wait(ALICE, record.task_id))).record.status == "completed"


class Unanswered:
    """A store whose creations are carried out, while their answers are lost."""

    def __init__(self, world: World) -> None:
        self.start, self.load, self.change = world.store.start, world.store.load, world.store.change
        self.hand_back = world.store.hand_back
        self.ahead = world.store.ahead
        self.delete, self.snapshot = world.store.delete, world.store.snapshot
        self.ask, self.heard, self.withdraw = world.store.ask, world.store.heard, world.store.withdraw
        self.park, self.answer, self.published = world.store.park, world.store.answer, world.store.published
        self.present, self.load_many = world.store.present, world.store.load_many
        self.page, self.retire, self.keep = world.store.page, world.store.retire, world.store.keep
        self.attend = world.store.attend
        self.finish, self.aclose = world.store.finish, world.store.aclose
        self.count_failed_lookups = world.store.count_failed_lookups
        self.create_in, self.earlier = world.store.create, world.store.earlier
        self.created: list[TaskRef] = []

    async def create(
        self,
        record: TaskRecord,
        snapshot: TaskContextSnapshot,
        quota: Quota | None = None,
        idempotency: Idempotency | None = None,
        message: QueueMessage | None = None,
    ) -> NoReturn:
        await self.create_in(record, snapshot, quota, idempotency, message)
        self.created.append(record.ref)
        raise StoreUnavailableError


async def test_a_creation_whose_answer_is_lost_leaves_no_record(world: World, queue: Watchful) -> None:
    store = Unanswered(world)
    engine = TaskEngine(
        store=store, queue=queue, bus=world.bus, results=None, limits=LIMITS, answer_version=LATEST_HANDSHAKE_VERSION
    )
    with pytest.raises(StoreUnavailableError):
        await engine.submit(a_submission())
    assert await world.store.load(store.created[0]) is None
    assert queue.asked == []


@dataclass
class Outage:
    store: TaskStore
    ledger: JobLedger
    bus: TaskBus


@pytest.fixture(params=["memory", "redis"])
async def outage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Outage]:
    if request.param == "memory":
        backend = MemoryBackend()
        backend.store.ledger.fail()
        backend.bus.fail()
        yield Outage(backend.store, backend.store.ledger, backend.bus)
        return
    world = RedisWorld(f"unix://{tmp_path}/nobody-listens", timeout_seconds=0.3)
    yield Outage(world.store, world.ledger, world.bus)
    await world.aclose()


class TestOutage:
    """A store that does not answer is an error, and nothing comes to be."""

    async def test_every_call_to_the_store_raises_that_it_is_unavailable(self, outage: Outage) -> None:
        record = a_record()
        for call in (
            outage.store.create(record, SNAPSHOT),
            outage.store.load(record.ref),
            outage.store.change(record.ref, Change(to="completed")),
            outage.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1)),
            outage.store.delete(record.ref),
        ):
            with pytest.raises(StoreUnavailableError) as error:
                await soon(call)
            assert error.value.code == -32603

    async def test_every_call_to_the_ledger_raises_that_the_store_is_unavailable(self, outage: Outage) -> None:
        with pytest.raises(StoreUnavailableError):
            outage.ledger.claim(a_record().ref, attempt=1, claim=Claim("celery@host", 1))
        with pytest.raises(StoreUnavailableError):
            outage.ledger.change(a_record().ref, Change(to="completed"))

    async def test_no_task_can_be_followed_during_an_outage(self, outage: Outage) -> None:
        with pytest.raises(StoreUnavailableError):
            await soon(outage.bus.subscribe([a_record().ref]).__aenter__())

    async def test_no_job_is_published_and_every_request_fails_during_an_outage(self, outage: Outage) -> None:
        queue = MemoryTaskQueue()
        engine = TaskEngine(
            store=outage.store,
            queue=queue,
            bus=outage.bus,
            results=None,
            limits=LIMITS,
            answer_version=LATEST_HANDSHAKE_VERSION,
        )
        for request in (engine.submit(a_submission()), engine.get(ALICE, "x"), engine.cancel(ALICE, "x"),
                        engine.wait(ALICE, "x")):  # fmt: skip
            with pytest.raises(StoreUnavailableError, match="try again later"):
                await soon(request)
        assert (queue.published, queue.revoked) == ([], [])
