"""What the engine writes into a record, asks of the queue and the store, and does when one of them fails."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import anyio
import anyio.lowlevel
import pytest
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from mcp_celery import audit
from mcp_celery.common.formats import FORMAT
from mcp_celery.config import TaskConfig
from mcp_celery.engine import (
    ELICIT,
    OWN_WORK,
    Asking,
    Caller,
    Change,
    EarlierTask,
    ExposedTasks,
    ForeignPlan,
    ForeignWork,
    HeldBack,
    Idempotency,
    JobOutcome,
    Observers,
    Question,
    QueueMessage,
    Quota,
    ResultSeals,
    Start,
    Submission,
    TaskEngine,
    TaskLimits,
    TaskRecord,
    TaskRef,
    WebhookKind,
    write_audit_log,
)
from mcp_celery.engine.outcome import FAILURE_REASONS
from mcp_celery.engine.record import RETIRED_MS
from mcp_celery.engine.result_seals import UNSEALED_RESULTS
from mcp_celery.errors import (
    QueueFullError,
    QueueUnavailableError,
    StoredDataError,
    StoreUnavailableError,
    TaskNotFoundError,
    TooManyStreamsError,
    TooManyTasksError,
)
from mcp_celery.keys import TaskType
from mcp_celery.server.keyring import snapshots_with
from mcp_celery.testing import MemoryBackend, MemoryTaskQueue, MemoryTaskStore
from tests.support.waiting import eventually, soon
from tests.support.worlds import ALICE, LIMITS, SNAPSHOT, a_submission

pytestmark = pytest.mark.anyio

NOW_MS: Final = 1_790_000_000_000
RESULT: Final = {"content": [{"type": "text", "text": "42"}]}


class Queue(MemoryTaskQueue):
    """A broker that notes revokes, and may take a message without saying so in time."""

    def __init__(self, store: MemoryTaskStore) -> None:
        super().__init__()
        self._store = store
        self.runs_and_says_nothing = False
        self.places: list[Submission] = []
        self.revokes: list[tuple[list[str], bool]] = []

    @asynccontextmanager
    async def place_for(self, submission: Submission) -> AsyncGenerator[None]:
        self.places.append(submission)
        async with super().place_for(submission):
            yield

    async def publish(self, record: TaskRecord, submission: Submission) -> None:
        if self.runs_and_says_nothing:
            assert await self._store.start(record.ref, Start(attempt=1, retries=0, at_ms=1))
            raise QueueUnavailableError
        await super().publish(record, submission)

    async def revoke(self, *job_ids: str, terminate: bool = True) -> None:
        await anyio.lowlevel.checkpoint()
        self.revokes.append((list(job_ids), terminate))


class Store(MemoryTaskStore):
    """A store over a network: a call that is cancelled on the way is not carried out."""

    def __init__(self, backend: MemoryBackend) -> None:
        super().__init__(backend.bus, results=backend.results)
        self.kept: list[TaskRef] = []
        self.deleted: list[TaskRef] = []
        self.refuses: StoreUnavailableError | None = None
        self.fails_to_delete: Exception | None = None
        self.hangs: asyncio.Event | None = None

    async def create(
        self,
        record: TaskRecord,
        snapshot: Any,
        quota: Quota | None = None,
        idempotency: Idempotency | None = None,
        message: QueueMessage | None = None,
    ) -> EarlierTask | HeldBack | None:
        if self.refuses is not None:
            raise self.refuses
        self.kept.append(record.ref)
        return await super().create(record, snapshot, quota, idempotency, message)

    async def delete(self, ref: TaskRef) -> bool:
        await anyio.lowlevel.checkpoint()
        self.deleted.append(ref)
        if self.hangs is not None:
            await self.hangs.wait()
        if self.fails_to_delete is not None:
            raise self.fails_to_delete
        return await super().delete(ref)


class Exposure:
    """Exposes everything as so many jobs."""

    def __init__(self, work: ForeignWork, expires: float | None = None) -> None:
        self.work, self.expires = work, expires

    async def plan(self, submission: Submission) -> ForeignPlan:
        return ForeignPlan("shop.sell", self.work, _publish, expires=self.expires)

    def returned(self, component: str, value: Any) -> dict[str, Any]:
        raise AssertionError((component, value))

    def raised(self, component: str, exception_name: str, arguments: Sequence[Any]) -> dict[str, Any]:
        raise AssertionError((component, exception_name, arguments))


def _publish(record: TaskRecord, producer: object) -> None:
    raise AssertionError((record, producer))


def _webhook_of(config: TaskConfig) -> WebhookKind | None:
    return "contents" if config.webhook else None


class Desk:
    """An engine in memory at a time that stands still."""

    def __init__(
        self, limits: TaskLimits = LIMITS, exposure: Exposure | None = None, seals: ResultSeals = UNSEALED_RESULTS
    ) -> None:
        backend = MemoryBackend()
        self.results = backend.results
        self.store = Store(backend)
        self.queue = Queue(self.store)
        self.exposed = None if exposure is None else ExposedTasks(exposure, self.results)
        self.engine = TaskEngine(
            store=self.store,
            queue=self.queue,
            bus=backend.bus,
            results=None,
            limits=limits,
            answer_version=LATEST_HANDSHAKE_VERSION,
            exposed=self.exposed,
            observers=Observers(write_audit_log),
            seals=seals,
            webhook_of=_webhook_of,
        )

    @classmethod
    async def with_a_record_to_take_back(cls) -> Desk:
        """One whose broker took no job, and whose store does not delete the record."""
        desk = cls()
        desk.queue.fail()
        desk.store.fails_to_delete = StoreUnavailableError()
        with pytest.raises(QueueUnavailableError):
            await desk.engine.submit(a_submission())
        return desk

    async def load(self, ref: TaskRef) -> TaskRecord | None:
        stored = await self.store.load(ref)
        return None if stored is None else stored.record

    async def is_gone(self, ref: TaskRef) -> bool:
        return await self.load(ref) is None


@pytest.fixture(autouse=True)
def time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("core", "followup_jobs", "rollback"):
        monkeypatch.setattr(f"mcp_celery.engine.{module}.now_ms", lambda: NOW_MS)
    defaults = MemoryTaskStore.__init__.__kwdefaults__ or {}
    monkeypatch.setattr(MemoryTaskStore.__init__, "__kwdefaults__", {**defaults, "clock": lambda: NOW_MS})


def test_the_engine_counts_streams_by_its_limits() -> None:
    streams = Desk(replace(LIMITS, max_open_streams=1)).engine.streams
    caller = Caller(requestor="r")
    with streams.place_for(caller), pytest.raises(TooManyStreamsError), streams.place_for(caller):
        pass


class TestTheRecord:
    async def test_a_record_holds_what_was_asked_and_granted(self) -> None:
        desk = Desk()
        caller = replace(ALICE, session="session-1", requestor="alice")
        config = TaskConfig(acks_late=True, poll_interval=250, expires=1.5, webhook="https://hooks.example/")
        snapshot = replace(SNAPSHOT, traceparent="00-trace")
        submission = replace(
            a_submission(caller, ttl_ms=5_000, config=config),
            job_name="named",
            task_type="prompt",
            listed=False,
            fingerprint="print-1",
            snapshot=snapshot,
        )
        record = await desk.engine.submit(submission)
        assert record == TaskRecord(
            task_id=record.task_id,
            scope=ALICE.scope,
            issuer=ALICE.issuer,
            session=caller.owner.session,
            job_name="named",
            task_type="prompt",
            component="build_report",
            created_at_ms=NOW_MS,
            updated_at_ms=NOW_MS,
            ttl_ms=5_000,
            poll_interval_ms=250,
            idempotent=True,
            listed=False,
            start_before_ms=NOW_MS + 1_500,
            work=OWN_WORK,
            options={"expires": 1.5},
            fingerprint="print-1",
            traceparent="00-trace",
            webhook="contents",
        )
        assert record.max_ttl_ms == LIMITS.max_ttl_ms
        assert desk.queue.published == [(record, submission)]
        assert desk.queue.places == [submission]
        assert await desk.store.snapshot(record.ref) == snapshot

    async def test_an_anonymous_callers_says_in_which_session_it_was_made(self) -> None:
        caller = Caller(session="session-1")
        record = await Desk().engine.submit(a_submission(caller))
        assert (record.scope, record.session) == (None, caller.owner.session)
        assert record.session is not None

    async def test_values_that_the_request_leaves_out_are_the_servers_defaults(self) -> None:
        record = await Desk().engine.submit(a_submission())
        assert (record.ttl_ms, record.poll_interval_ms) == (LIMITS.default_ttl_ms, LIMITS.poll_interval_ms)
        assert (record.start_before_ms, record.idempotent, record.listed) == (None, False, True)
        assert record.webhook is None

    async def test_of_exposed_work_the_plan_says_what_runs_and_until_when(self) -> None:
        work = ForeignWork(parts=2, may_terminate=True)
        desk = Desk(exposure=Exposure(work, expires=2.0))
        declared = replace(a_submission(config=TaskConfig(expires=9.0)), fingerprint="print-1")
        record = await desk.engine.submit(declared)
        assert (record.job_name, record.work, record.start_before_ms) == ("shop.sell", work, NOW_MS + 2_000)
        assert (record.fingerprint, record.options) == (None, {})
        ((_, submission),) = desk.queue.published
        assert (submission.job_name, submission.plan is not None) == ("shop.sell", True)
        assert submission.snapshot == replace(SNAPSHOT, params={}, session_id=None, headers=None)
        assert desk.queue.places == [submission]

    async def test_the_watcher_of_exposed_jobs_is_told_of_each_that_begins(self) -> None:
        desk = Desk(exposure=Exposure(ForeignWork()))
        assert desk.exposed is not None
        told: list[str] = []
        desk.exposed.began = told.append
        record = await desk.engine.submit(a_submission())
        assert told == [record.key]


class TestCeleryIds:
    @pytest.mark.parametrize(
        ("hides", "caller", "is_shown"),
        [(True, Caller(), False), (True, ALICE, True), (False, Caller(), True), (False, ALICE, True)],
    )
    async def test_the_task_ids_of_anonymous_callers_are_hidden_where_the_server_says_so(
        self, *, hides: bool, caller: Caller, is_shown: bool
    ) -> None:
        record = await Desk(replace(LIMITS, hide_anonymous_ids=hides)).engine.submit(a_submission(caller))
        assert (record.task_id in record.job_id) == is_shown

    @pytest.mark.parametrize(
        ("task_type", "declared_as", "shown", "is_shown"),
        [
            ("resource", "reports:{year}/{part}", [], False),
            ("resource", "reports:{year}/{part}", ["year"], False),
            ("resource", "reports:{year}/{part}", ["part", "year"], True),
            ("resource", "reports:2026/7", [], True),
            ("resource", None, [], True),
            ("tool", "reports:{year}/{part}", [], True),
        ],
    )
    async def test_the_uri_of_a_resource_is_hidden_unless_all_its_arguments_may_be_shown(
        self, task_type: TaskType, declared_as: str | None, shown: list[str], *, is_shown: bool
    ) -> None:
        config = TaskConfig(show_arguments=shown)
        submission = replace(a_submission(config=config), task_type=task_type, declared_as=declared_as)
        record = await Desk().engine.submit(replace(submission, component="reports:2026/7"))
        assert ("2026" in record.job_id) == is_shown

    async def test_a_task_id_and_a_uri_may_both_be_hidden(self) -> None:
        desk = Desk(replace(LIMITS, hide_anonymous_ids=True))
        submission = replace(a_submission(Caller()), task_type="resource", declared_as="reports:{year}")
        record = await desk.engine.submit(replace(submission, component="reports:2026"))
        assert record.task_id not in record.job_id
        assert "2026" not in record.job_id


class TestTakingBack:
    async def test_a_job_that_runs_although_its_message_seemed_lost_keeps_its_task(self) -> None:
        desk = Desk()
        desk.queue.runs_and_says_nothing = True
        record = await desk.engine.submit(a_submission())
        assert await desk.load(record.ref) is not None
        assert desk.queue.revokes == []

    async def test_a_record_that_cannot_be_taken_back_now_is_taken_back_when_the_store_answers(self) -> None:
        desk = await Desk.with_a_record_to_take_back()
        (ref,) = desk.store.kept
        assert await desk.load(ref) is not None
        desk.store.fails_to_delete = None
        await eventually(lambda: desk.is_gone(ref), what="the record is taken back")
        await desk.engine.aclose(patience_seconds=0)

    async def test_a_record_that_is_not_taken_back_before_the_end_is_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        desk = await Desk.with_a_record_to_take_back()
        await desk.engine.aclose(patience_seconds=0)
        (line,) = caplog.messages
        assert line.startswith("could not delete 1 tasks whose jobs were not published")

    async def test_at_the_end_a_record_may_still_be_taken_back_for_a_while(self) -> None:
        desk = await Desk.with_a_record_to_take_back()
        desk.store.fails_to_delete = None
        await soon(desk.engine.aclose(patience_seconds=60))
        assert await desk.is_gone(desk.store.kept[0])

    async def test_a_store_that_hangs_is_not_waited_for(self) -> None:
        desk = Desk()
        desk.queue.fail()
        desk.store.hangs = asyncio.Event()
        with pytest.raises(QueueUnavailableError):
            await soon(desk.engine.submit(a_submission()))
        desk.store.hangs.set()
        await eventually(lambda: desk.is_gone(desk.store.kept[0]), what="the record is taken back")
        await desk.engine.aclose(patience_seconds=0)

    async def test_a_store_that_was_not_asked_to_create_is_not_asked_to_delete(self) -> None:
        desk = Desk()
        desk.store.refuses = StoreUnavailableError(is_sent=False)
        with pytest.raises(StoreUnavailableError):
            await desk.engine.submit(a_submission())
        assert desk.store.deleted == []

    async def test_a_record_that_cannot_be_read_is_left_and_the_client_gets_the_error(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        desk = Desk()
        desk.queue.fail()
        desk.store.fails_to_delete = error = StoredDataError("it holds another type")
        with pytest.raises(QueueUnavailableError):
            await desk.engine.submit(a_submission())
        task_id = desk.store.kept[0].task_id
        assert caplog.messages == [f"could not delete task {task_id}, whose job was not published: {error}"]

    async def test_a_client_that_disconnects_does_not_stop_the_taking_back(self) -> None:
        desk = Desk(exposure=Exposure(ForeignWork()))
        desk.queue.hold()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(desk.engine.submit, a_submission())
            while not desk.store.kept:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        assert await desk.load(desk.store.kept[0]) is None
        await eventually(lambda: len(desk.queue.revokes) == 1, what="the job is revoked")

    @pytest.mark.parametrize("terminate", [True, False])
    async def test_exposed_jobs_are_revoked_for_they_would_run(self, *, terminate: bool) -> None:
        desk = Desk(exposure=Exposure(ForeignWork(parts=2, may_terminate=terminate)))
        desk.queue.fail()
        with pytest.raises(QueueUnavailableError):
            await desk.engine.submit(a_submission())
        await eventually(lambda: desk.queue.revokes, what="the jobs are revoked")
        ((job_ids, terminates),) = desk.queue.revokes
        assert (len(job_ids), terminates) == (2, terminate)

    async def test_a_job_of_ours_finds_no_record_and_needs_no_revoke(self) -> None:
        desk = Desk()
        desk.queue.fail()
        with pytest.raises(QueueUnavailableError):
            await desk.engine.submit(a_submission())
        assert desk.queue.revokes == []
        assert await desk.load(desk.store.kept[0]) is None

    async def test_a_body_that_has_begun_does_not_excuse_another_error(self) -> None:
        desk = Desk()

        async def publish(record: TaskRecord, submission: Submission) -> None:
            assert submission.component == record.component
            assert await desk.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1))
            raise RuntimeError("unforeseen")

        desk.queue.publish = publish
        with pytest.raises(RuntimeError, match="unforeseen"):
            await desk.engine.submit(a_submission())


class TestQuota:
    async def test_the_error_names_the_limit_and_the_audit_log_names_the_caller(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        desk = Desk(replace(LIMITS, max_open_tasks=1))
        alice = replace(ALICE, requestor="alice")
        await desk.engine.submit(a_submission(alice))
        caplog.clear()  # an audit log that a test before has switched on tells of the first task
        with caplog.at_level(logging.INFO, audit.LOGGER), pytest.raises(TooManyTasksError) as refused:
            await desk.engine.submit(a_submission(alice))
        assert refused.value.data == {"limit": "open_tasks", "most": 1}
        (line,) = [record.__dict__ for record in caplog.records]
        assert (line["event"], line["task_scope"], line["limit"]) == ("task.limited", ALICE.scope, "open_tasks")
        assert len(desk.queue.published) == 1

    async def test_a_full_queue_is_in_the_audit_log_too(self, caplog: pytest.LogCaptureFixture) -> None:
        desk = Desk()
        desk.queue.most = 0
        with caplog.at_level(logging.INFO, audit.LOGGER), pytest.raises(QueueFullError):
            await desk.engine.submit(a_submission())
        (line,) = [record.__dict__ for record in caplog.records]
        assert (line["event"], line["task_scope"], line["limit"]) == ("task.limited", ALICE.scope, "queue_length")
        assert desk.store.kept == []


async def test_the_audit_log_names_what_a_component_is_declared_as(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, audit.LOGGER):
        record = await Desk().engine.submit(replace(a_submission(), declared_as="report://{year}"))
    (line,) = [one.__dict__ for one in caplog.records]
    assert (line["task_id"], line["component"]) == (record.task_id, "report://{year}")


@pytest.mark.parametrize("status", ["working", "cancelled"])
async def test_the_audit_log_names_a_status_that_was_read(caplog: pytest.LogCaptureFixture, status: Any) -> None:
    desk = Desk()
    record = await desk.engine.submit(a_submission())
    assert await desk.store.change(record.ref, Change(to=status))
    caplog.clear()  # an audit log that a test before has switched on tells of the task and of its change
    with caplog.at_level(logging.DEBUG, audit.LOGGER):
        await desk.engine.status(ALICE, record.task_id)
    (line,) = [one.__dict__ for one in caplog.records]
    assert (line["event"], line["task_scope"], line["task_id"]) == ("task.retrieved", ALICE.scope, record.task_id)
    assert (line["task_status"], line["levelno"]) == (status, logging.DEBUG if status == "working" else logging.INFO)


class TestCancel:
    async def test_a_job_of_ours_is_ended_where_it_runs(self) -> None:
        desk = Desk()
        record = await desk.engine.submit(a_submission())
        await desk.engine.cancel(ALICE, record.task_id)
        assert desk.queue.revokes == [([record.job_id], True)]

    @pytest.mark.parametrize("terminate", [True, False])
    async def test_an_exposed_job_is_ended_where_its_declaration_allows_it(self, *, terminate: bool) -> None:
        desk = Desk(exposure=Exposure(ForeignWork(parts=2, may_terminate=terminate)))
        record = await desk.engine.submit(a_submission())
        await desk.engine.cancel(ALICE, record.task_id)
        assert desk.queue.revokes == [(record.job_ids, terminate)]

    async def test_a_task_that_expires_on_the_way_is_not_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk()
        record = await desk.engine.submit(a_submission())

        async def change(ref: TaskRef, change: Change) -> None:
            assert (ref, change.to) == (record.ref, "cancelled")

        monkeypatch.setattr(desk.store, "change", change)
        with pytest.raises(TaskNotFoundError):
            await desk.engine.cancel(ALICE, record.task_id)

    async def test_a_task_that_ends_during_the_cancel_is_not_revoked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk()
        record = await desk.engine.submit(a_submission())
        find = desk.engine.find

        async def ended_meanwhile(caller: Caller, task_id: str) -> TaskRecord:
            found = await find(caller, task_id)
            assert await desk.store.change(record.ref, Change(to="failed"))
            return found

        monkeypatch.setattr(desk.engine, "find", ended_meanwhile)
        assert (await desk.engine.cancel(ALICE, record.task_id)).status == "failed"
        assert desk.queue.revokes == []


class TestLifetimes:
    async def test_a_retired_task_is_kept_for_a_minute_or_for_the_given_time(self) -> None:
        desk = Desk()
        record = await desk.engine.submit(a_submission())
        for after_ms, ttl_ms in ((None, RETIRED_MS), (7, 7)):
            if after_ms is None:
                await desk.engine.retire(ALICE, record.task_id)
            else:
                await desk.engine.retire(ALICE, record.task_id, after_ms=after_ms)
            found = await desk.load(record.ref)
            assert found is not None
            assert found.ttl_ms == ttl_ms

    @pytest.mark.parametrize(
        ("asked_ms", "declared_ms", "granted_ms"),
        [(None, None, 600_000), (700_000, None, 700_000), (None, 800_000, 800_000), (10**12, None, 3_600_000)],
    )
    async def test_a_kept_task_has_the_lifetime_of_one_that_is_created_now(
        self, monkeypatch: pytest.MonkeyPatch, asked_ms: int | None, declared_ms: int | None, granted_ms: int
    ) -> None:
        desk = Desk(replace(LIMITS, max_ttl_ms=3_600_000))
        record = await desk.engine.submit(a_submission(ttl_ms=1_000))
        await desk.engine.keep(ALICE, record.task_id, ttl_ms=asked_ms, config=TaskConfig(ttl=declared_ms))
        found = await desk.load(record.ref)
        assert found is not None
        assert found.ttl_ms == granted_ms

    async def test_only_ones_own_task_is_retired_or_kept(self) -> None:
        desk = Desk()
        record = await desk.engine.submit(a_submission())
        await desk.engine.retire(Caller(), record.task_id)
        await desk.engine.keep(Caller(), record.task_id, ttl_ms=700_000, config=TaskConfig())
        assert await desk.load(record.ref) == record


class TestViews:
    async def test_a_follower_that_wants_no_results_gets_none(self) -> None:
        desk = Desk()
        record = await desk.engine.submit(a_submission())
        desk.results.put(record.job_id, "SUCCESS", JobOutcome(RESULT))
        assert await desk.store.change(record.ref, Change(to="completed"))
        for results, expected in ((False, None), (True, RESULT)):
            async with desk.engine.watch(ALICE, [record.task_id], results=results) as watch:
                view = await watch.__anext__()
            assert (view.record.status, view.result) == ("completed", expected)

    async def test_a_damaged_result_is_an_error_once_it_is_read(self) -> None:
        desk = Desk()
        record = await desk.engine.submit(a_submission())
        desk.results.put(record.job_id, "SUCCESS", {"format": FORMAT, "isError": False, "result": "{damaged"})
        assert await desk.store.change(record.ref, Change(to="completed"))
        view = await desk.engine.get(ALICE, record.task_id, read_result=False)
        assert view.outcome is not None
        assert view.outcome.unread_text == "{damaged"
        with pytest.raises(json.JSONDecodeError):
            await desk.engine.get(ALICE, record.task_id)
        async with desk.engine.watch(ALICE, [record.task_id]) as watch:
            with pytest.raises(json.JSONDecodeError):
                await watch.__anext__()

    async def test_a_completed_task_whose_result_no_worker_sealed_is_seen_as_failed(self) -> None:
        desk = Desk(seals=ResultSeals("desk", snapshots_with(["a key for tests that has more than 32 bytes"]).sealing))
        record = await desk.engine.submit(a_submission())
        desk.results.put(record.job_id, "SUCCESS", JobOutcome(RESULT))
        assert await desk.store.change(record.ref, Change(to="completed"))
        view = await desk.engine.get(ALICE, record.task_id)
        assert (view.record.task_id, view.record.status) == (record.task_id, "failed")
        assert (view.record.status_message, view.result) == (FAILURE_REASONS["RefusedResult"], None)

    async def test_open_questions_are_shown_while_the_task_waits(self) -> None:
        desk = Desk()
        record = await desk.engine.submit(a_submission())
        question = Question("1.name", ELICIT, {"message": "Who?"})
        assert await desk.store.ask(record.ref, question, Asking(attempt=1, at_ms=1))
        view = await desk.engine.get(ALICE, record.task_id)
        assert view.input_requests == {"1.name": question.request}
        assert (await desk.engine.get(ALICE, record.task_id)).result is None

    async def test_each_state_on_the_way_is_seen_but_not_the_last(self) -> None:
        desk = Desk()
        record = await desk.engine.submit(a_submission())
        seen: list[str] = []

        def note(view: Any) -> None:
            seen.append(view.record.status)
            desk.store.ledger.change(record.ref, Change(to="failed"))

        last = await desk.engine.wait(ALICE, record.task_id, note)
        assert (seen, last.record.status) == (["working"], "failed")

    async def test_the_same_id_twice_is_followed_once(self) -> None:
        desk = Desk()
        record = await desk.engine.submit(a_submission())
        async with desk.engine.watch(ALICE, [record.task_id, record.task_id]) as watch:
            assert watch.accepted == [record.task_id]
