"""With encryption keys, who can write to the result backend cannot have a result believed that no worker returned."""

import json
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final

import pytest
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from mcp_celery.common.formats import SEALED_RESULT, UNNUMBERED
from mcp_celery.engine import (
    Change,
    JobOutcome,
    JobRun,
    Progress,
    ResultSeals,
    RpcError,
    TaskEngine,
    TaskRecord,
    TaskView,
    failure,
)
from mcp_celery.engine.outcome import FAILURE_REASONS
from mcp_celery.errors import INTERNAL_ERROR, JobFailedError, ResultUnavailableError, SealedJobError, StoredDataError
from mcp_celery.server.keyring import snapshots_with
from mcp_celery.testing import MemoryTaskQueue
from tests.support.leaks import no_eternal_keys
from tests.support.worlds import ALICE, LIMITS, RedisWorld, a_submission

pytestmark = pytest.mark.anyio

KEY, OTHER = "a key for tests that has more than 32 bytes", "another key for tests that has more than 32 bytes"
OUTCOME = JobOutcome({"content": [{"type": "text", "text": "planted result"}]}, "planted message", Progress(1, 2))
FORGED = JobOutcome({"content": [{"type": "text", "text": "forged"}]})
ERROR = JobFailedError(-32001, "planted error", {"planted": "data"})
NAMESPACE: Final = "contract"
REFUSED_REASON: Final = FAILURE_REASONS["RefusedResult"]
REFUSED: Final = RpcError(INTERNAL_ERROR, REFUSED_REASON)


def seals(*keys: str, namespace: str = NAMESPACE, accept_unsealed: bool = False) -> ResultSeals:
    return ResultSeals(namespace, snapshots_with(keys, accept_unsealed=accept_unsealed).sealing)


@dataclass
class Sealed:
    """A server with keys, and what its result backend holds."""

    world: RedisWorld
    url: str
    is_apart: bool

    def engine(self, *keys: str, accept_unsealed: bool = False) -> TaskEngine:
        """The engine of a server with some keys; its records are read with those of the fixture."""
        return TaskEngine(
            store=self.world.store,
            queue=MemoryTaskQueue(),
            bus=self.world.bus,
            results=self.world.results,
            limits=LIMITS,
            answer_version=LATEST_HANDSHAKE_VERSION,
            seals=seals(*keys, accept_unsealed=accept_unsealed),
        )

    async def submitted(self) -> TaskRecord:
        return await self.engine(KEY).submit(a_submission())

    def put(self, record: TaskRecord, value: object, state: str = "SUCCESS") -> None:
        """Store what a worker stores, or what somebody else does."""
        self.world.put_result(record.job_id, state, value)

    def put_error(self, record: TaskRecord, error: BaseException) -> None:
        """Store a failure in the form of Celery."""
        self.put(record, {"exc_type": type(error).__name__, "exc_message": list(error.args)}, "FAILURE")

    async def completed(self, value: object, state: str = "SUCCESS") -> TaskRecord:
        """A task that has completed, and what is stored of its job."""
        record = await self.submitted()
        self.put(record, value(record) if callable(value) else value, state)
        assert await self.world.store.change(record.ref, Change(to="completed", attempt=1))
        return record

    async def view(self, record: TaskRecord, *keys: str, accept_unsealed: bool = False) -> TaskView:
        return await self.engine(*keys or (KEY,), accept_unsealed=accept_unsealed).get(ALICE, record.task_id)


@pytest.fixture(params=[False, True], ids=["results at hand", "results apart"])
async def sealed(store_url: str, request: pytest.FixtureRequest) -> AsyncGenerator[Sealed]:
    world = RedisWorld(store_url, snapshots=snapshots_with([KEY]), results_apart=request.param)
    try:
        with no_eternal_keys(store_url, [world.prefix]):
            yield Sealed(world, store_url, request.param)
    finally:
        if left := world.keys_left():
            world.client.delete(*left)
        await world.aclose()


def run_of(record: TaskRecord) -> JobRun:
    return JobRun(record.key, record.leg, record.attempt)


def genuine(record: TaskRecord) -> object:
    """What a worker with the server's keys stores."""
    return seals(KEY).result(OUTCOME, run_of(record))


def with_change(text: str) -> str:
    """A sealed text with another last character."""
    return text[:-6] + ("A" if text[-6] != "A" else "B") + text[-5:]


async def test_the_owner_reads_what_the_job_returned(sealed: Sealed) -> None:
    view = await sealed.view(await sealed.completed(genuine))
    assert (view.record.status, view.result) == ("completed", OUTCOME.result)


async def test_a_result_is_read_although_its_worker_died_before_it_reported_the_end(sealed: Sealed) -> None:
    record = await sealed.submitted()
    sealed.put(record, genuine(record))
    view = await sealed.view(record)
    assert (view.record.status, view.result) == ("completed", OUTCOME.result)
    assert (view.record.status_message, view.record.progress) == ("planted message", Progress(1, 2))


async def test_stored_results_show_no_plain_text(sealed: Sealed) -> None:
    record = await sealed.submitted()
    stored = json.dumps([genuine(record), *seals(KEY).error(ERROR, run_of(record)).args])
    assert "planted" not in stored
    assert stored.count("v1.") == 2
    assert json.loads(stored)[0].keys() == {"format", "sealed"}


FORGERIES: dict[str, Callable[[TaskRecord], object]] = {
    "a result that is not sealed": lambda _: FORGED,
    "one in the form of 0.1.0": lambda _: {"result": FORGED.result, "statusMessage": None, "progress": None},
    "another task's": lambda record: seals(KEY).result(FORGED, JobRun("another" + record.key, 1, 1)),
    "another leg's": lambda record: seals(KEY).result(FORGED, JobRun(record.key, 2, 1)),
    "another attempt's": lambda record: seals(KEY).result(FORGED, JobRun(record.key, 1, 2)),
    "another server's": lambda record: seals(KEY, namespace="another").result(FORGED, run_of(record)),
    "one with other keys": lambda record: seals(OTHER).result(FORGED, run_of(record)),
    "one that was changed": lambda record: {
        "format": SEALED_RESULT,
        "sealed": with_change(seals(KEY).result(FORGED, run_of(record))["sealed"]),
    },
    "one that was cut off": lambda record: {
        "format": SEALED_RESULT,
        "sealed": seals(KEY).result(FORGED, run_of(record))["sealed"][:100],
    },
    "an error's text": lambda record: {
        "format": SEALED_RESULT,
        "sealed": seals(KEY).error(ERROR, run_of(record)).args[0],
    },
    "a plain one beside a sealed one": lambda record: {
        **FORGED.__json__(),
        **seals(OTHER).result(FORGED, run_of(record)),
    },
    "no text": lambda _: {"format": SEALED_RESULT, "sealed": 1},
    "no result": lambda _: "forged",
}
of_each_forgery = pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES.keys())


@of_each_forgery
async def test_a_completed_task_with_a_forged_result_is_seen_as_failed(
    sealed: Sealed, forgery: Callable[[TaskRecord], object], caplog: pytest.LogCaptureFixture
) -> None:
    record = await sealed.completed(forgery)
    view = await sealed.view(record)
    assert (view.record.status, view.record.error, view.result) == ("failed", REFUSED, None)
    assert view.record.status_message == REFUSED_REASON
    assert "refused the stored result of task" in caplog.text
    assert "forged" not in caplog.text
    async with sealed.engine(KEY).watch(ALICE, [record.task_id]) as watch:
        assert [(one.record.status, one.result) async for one in watch] == [("failed", None)]
    # Nothing of it is written down: what belongs there may come back.
    sealed.put(record, genuine(record))
    assert (await sealed.view(record)).result == OUTCOME.result


@of_each_forgery
async def test_an_open_task_ends_as_failed_by_a_forged_result(
    sealed: Sealed, forgery: Callable[[TaskRecord], object]
) -> None:
    record = await sealed.submitted()
    sealed.put(record, forgery(record))
    view = await sealed.view(record)
    assert (view.record.status, view.record.error, view.result) == ("failed", REFUSED, None)


@pytest.mark.parametrize("state", ["STARTED", "PENDING", "PROGRESS", "completed"])
async def test_a_result_in_another_state_is_none(sealed: Sealed, state: str) -> None:
    record = await sealed.completed(FORGED, state)
    with pytest.raises(ResultUnavailableError):
        await sealed.view(record)


async def test_a_result_of_an_attempt_that_was_given_up_counts_as_without_keys(sealed: Sealed) -> None:
    """Some result backends keep the first result of a job whatever comes later."""
    record = await sealed.completed(genuine)
    key = sealed.world.keys.record(record.scope, record.task_id)
    sealed.world.client.hset(key, "attempt", 2)
    assert (await sealed.view(record)).result == OUTCOME.result


async def test_a_failure_of_an_attempt_that_was_given_up_ends_nothing(sealed: Sealed) -> None:
    record = await sealed.submitted()
    sealed.world.client.hset(sealed.world.keys.record(record.scope, record.task_id), "attempt", 2)
    for error in (seals(KEY).error(ERROR, run_of(record)), seals(OTHER).error(ERROR, run_of(record))):
        sealed.put_error(record, error)
        assert (await sealed.view(record)).record.status == "working"


FORGED_ERRORS: dict[str, Callable[[TaskRecord], BaseException]] = {
    "one that is not sealed": lambda _: JobFailedError(-32001, "forged"),
    "another task's": lambda record: seals(KEY).error(ERROR, JobRun("another" + record.key, 1, 1)),
    "another attempt's": lambda record: seals(KEY).error(ERROR, JobRun(record.key, 1, 2)),
    "one with other keys": lambda record: seals(OTHER).error(ERROR, run_of(record)),
    "a result's text": lambda record: SealedJobError(seals(KEY).result(FORGED, run_of(record))["sealed"]),
    "no sealed text": lambda _: SealedJobError("forged"),
}


class TestErrors:
    async def test_the_owner_reads_how_the_job_failed(self, sealed: Sealed) -> None:
        record = await sealed.submitted()
        error = seals(KEY).error(ERROR, run_of(record))
        assert "planted" not in f"{error} {error!r} {error.args}"
        sealed.put_error(record, error)
        view = await sealed.view(record)
        assert view.record.error == RpcError(-32001, "planted error", {"planted": "data"})

    @pytest.mark.parametrize("forgery", FORGED_ERRORS.values(), ids=FORGED_ERRORS.keys())
    async def test_a_forged_error_is_not_shown(
        self, sealed: Sealed, forgery: Callable[[TaskRecord], BaseException]
    ) -> None:
        record = await sealed.submitted()
        sealed.put_error(record, forgery(record))
        assert (await sealed.view(record)).record.error == REFUSED

    async def test_a_reason_of_the_librarys_own_needs_no_keys(self, sealed: Sealed) -> None:
        """Celery itself stores the loss of a process; and a worker without the server's keys says so."""
        record = await sealed.submitted()
        reason = failure("SnapshotUnreadableError").error
        assert reason is not None
        error = JobFailedError(reason.code, reason.message)
        assert seals(OTHER).error(error, run_of(record)) is error
        sealed.put_error(record, error)
        assert (await sealed.view(record)).record.error == reason


class TestKeys:
    async def test_the_old_key_of_a_ring_opens_and_a_removed_one_does_not(self, sealed: Sealed) -> None:
        record = await sealed.completed(genuine)
        assert (await sealed.view(record, OTHER, KEY)).result == OUTCOME.result
        assert (await sealed.view(record, OTHER)).record.error == REFUSED

    async def test_a_server_without_keys_refuses_sealed_results(
        self, sealed: Sealed, caplog: pytest.LogCaptureFixture
    ) -> None:
        record = await sealed.completed(genuine)
        view = await sealed.engine().get(ALICE, record.task_id)
        assert (view.record.error, view.result) == (REFUSED, None)
        assert "it is sealed, and this process has no MCP_CELERY_ENCRYPTION_KEYS" in caplog.text
        failed = await sealed.submitted()
        sealed.put_error(failed, seals(KEY).error(ERROR, run_of(failed)))
        assert (await sealed.engine().get(ALICE, failed.task_id)).record.error == REFUSED

    async def test_without_keys_results_are_stored_and_read_as_they_are(self, sealed: Sealed) -> None:
        record = await sealed.submitted()
        assert seals().result(OUTCOME, run_of(record)) == OUTCOME.__json__()
        assert seals().error(ERROR, run_of(record)) is ERROR
        sealed.put(record, seals().result(OUTCOME, run_of(record)))
        assert (await sealed.engine().get(ALICE, record.task_id)).result == OUTCOME.result

    async def test_unsealed_results_are_read_while_that_is_accepted(self, sealed: Sealed) -> None:
        of_0_1_0 = JobOutcome(OUTCOME.result, form=UNNUMBERED)
        for outcome in (OUTCOME, of_0_1_0):
            record = await sealed.completed(outcome)
            assert (await sealed.view(record, accept_unsealed=True)).result == OUTCOME.result
        failed = await sealed.submitted()
        sealed.put_error(failed, ERROR)
        assert (await sealed.view(failed, accept_unsealed=True)).record.error == RpcError(
            -32001, "planted error", ERROR.data
        )
        moved = await sealed.completed(FORGERIES["another task's"])
        assert (await sealed.view(moved, accept_unsealed=True)).record.error == REFUSED

    async def test_a_worker_that_accepts_unsealed_results_stores_results_that_0_1_0_reads(self, sealed: Sealed) -> None:
        worker = ResultSeals(NAMESPACE, snapshots_with([KEY], accept_unsealed=True).of_workers.sealing)
        record = await sealed.submitted()
        of_0_1_0 = JobOutcome(OUTCOME.result, form=UNNUMBERED)
        assert worker.result(of_0_1_0, run_of(record)) == of_0_1_0.__json__()
        assert worker.error(ERROR, run_of(record)) is ERROR
        assert "sealed" in ResultSeals(NAMESPACE, snapshots_with([KEY]).of_workers.sealing).result(
            of_0_1_0, run_of(record)
        )


async def test_a_record_that_was_made_one_of_exposed_jobs_gives_no_result(sealed: Sealed) -> None:
    """Results of exposed jobs are not sealed: they are what the host's own workers store."""
    record = await sealed.completed(FORGED)
    key = sealed.world.keys.record(record.scope, record.task_id)
    sealed.world.client.hset(key, "work", "[1, 0, false]")
    with pytest.raises(StoredDataError, match="was not written with this server's MCP_CELERY_ENCRYPTION_KEYS"):
        await sealed.view(record)
