"""Cancel, wherever a job is: queued, held back, running, waiting for another try; by the client or an operator."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

import psutil
import pytest
from celery.worker import state

from mcp_celery import Settings
from mcp_celery.engine import Caller, TaskRecord
from mcp_celery.logs import with_short_ids
from tests.integration.conftest import Starter, lines, settings_for, worker_environment
from tests.support.live import ANYONE, Gate, LiveServer, live_server
from tests.support.nodes import ROOT, EmbeddedStoreContainer, Pool, WorkerProcess, environment
from tests.support.programs import forked_command
from tests.support.servers import cancelling
from tests.support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.each_pool]

SERVER = "tests.support.servers.cancelling:server"
PATIENCE_SECONDS = 120.0
REVOKED = "The job was revoked"
HELD = ("--prefetch-multiplier=4",)
"""The worker takes more jobs from the broker than it can run."""

prefork_only = pytest.mark.parametrize("pool", ["prefork"], indirect=True)
in_threads = pytest.mark.parametrize("pool", ["asyncio", "threads"], indirect=True)


@pytest.fixture(scope="module")
def cancel_settings(store: EmbeddedStoreContainer, pool: Pool) -> Settings:
    return settings_for(store, f"cancel-{pool}", progress_interval_ms=10)


@pytest.fixture(scope="module")
def cancel_worker(shared: Starter, pool: Pool, cancel_settings: Settings) -> Generator[WorkerProcess]:
    worker = shared.worker(SERVER, pool, cancel_settings, concurrency=1, flags=HELD)
    yield worker
    worker.teardown()


@pytest.fixture
async def live(cancel_worker: WorkerProcess, cancel_settings: Settings) -> AsyncGenerator[LiveServer]:
    async with live_server(cancelling.build, cancel_settings) as server:
        yield server


def control_revoke(settings: Settings, *arguments: str) -> None:
    """What an operator types."""
    command = [*forked_command("celery"), "-A", "mcp_celery", "control", "revoke", *arguments]
    subprocess.run(
        command, env=environment(**worker_environment(settings)), cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )


class Pushes:
    """What the workers tell of a task by themselves. To ask for it could settle it."""

    def __init__(self, live: LiveServer, record: TaskRecord) -> None:
        self._live, self._record = live, record
        self._channel = live.redis().pubsub(ignore_subscribe_messages=True)
        self._channel.subscribe(live.keys.channel(record.scope, record.task_id))

    async def end(self) -> TaskRecord:
        await eventually(
            self._has_ended, what=f"{self._record.task_id} is told to have ended", seconds=PATIENCE_SECONDS
        )
        self._channel.close()
        return (await self._live.engine.get(Caller(self._record.scope), self._record.task_id)).record

    def _has_ended(self) -> bool:
        if self._channel.get_message() is None:
            return False
        with self._live.redis() as client:
            status = client.hget(self._live.keys.record(self._record.scope, self._record.task_id), "status")
        return status != "working"


async def goes_on(live: LiveServer) -> None:
    assert await live.text_of("add", {"a": 1, "b": 1}) == "2"


async def cleaned_up(gate: Gate) -> None:
    await eventually(lambda: gate.notes("cleaned"), what="the tool's own clean-up", seconds=PATIENCE_SECONDS)


class TestByTheClient:
    @pytest.mark.smoke
    @pytest.mark.shows("L27")
    async def test_a_running_coroutine_is_cancelled_and_cleans_up(
        self, live: LiveServer, cancel_worker: WorkerProcess, gate: Gate
    ) -> None:
        record = await live.submit("hold", {"gate": str(gate)})
        [pid] = await gate.reached()
        assert (await live.engine.cancel(ANYONE, record.task_id)).status == "cancelled"
        await cleaned_up(gate)
        await goes_on(live)
        assert psutil.pid_exists(pid) is (cancel_worker.pool != "prefork")
        ended = await live.now(record)
        assert (ended.status, ended.status_message) == ("cancelled", "Cancelled by the client")
        assert "Traceback" not in cancel_worker.logs_since_mark()

    @pytest.mark.smoke
    @prefork_only
    async def test_a_running_function_ends_with_its_process_and_cleans_up(self, live: LiveServer, gate: Gate) -> None:
        record = await live.submit("hold_sync", {"gate": str(gate)})
        [pid] = await gate.reached()
        await live.engine.cancel(ANYONE, record.task_id)
        await eventually(lambda: not psutil.pid_exists(pid), what="the child has ended", seconds=PATIENCE_SECONDS)
        assert gate.notes("cleaned") == ["up"]
        await goes_on(live)

    @in_threads
    @pytest.mark.shows("L28")
    async def test_a_function_that_cannot_be_ended_stays_cancelled(
        self, live: LiveServer, cancel_worker: WorkerProcess, gate: Gate
    ) -> None:
        record = await live.submit("hold_sync", {"gate": str(gate)})
        await gate.reached()
        cancelled = await live.engine.cancel(ANYONE, record.task_id)
        await goes_on(live)  # on the slot that it no longer holds
        gate.open()
        await cleaned_up(gate)
        view = await live.engine.get(ANYONE, record.task_id)
        assert (view.record, view.result) == (cancelled, None)
        assert "NotImplementedError" not in cancel_worker.logs_since_mark()

    @in_threads
    @pytest.mark.shows("L28")
    async def test_a_coroutine_that_ignores_a_cancel_stays_cancelled(self, live: LiveServer, gate: Gate) -> None:
        record = await live.submit("stubborn", {"gate": str(gate)})
        await gate.reached()
        cancelled = await live.engine.cancel(ANYONE, record.task_id)
        await eventually(lambda: gate.notes("ignored"))
        gate.open()
        await cleaned_up(gate)
        await goes_on(live)
        view = await live.engine.get(ANYONE, record.task_id)
        assert (view.record, view.result) == (cancelled, None)

    @pytest.mark.smoke
    @in_threads
    @pytest.mark.parametrize("what", cancelling.USES)
    async def test_a_cancelled_function_gets_an_error_when_it_uses_its_context(
        self, live: LiveServer, gate: Gate, what: str
    ) -> None:
        record = await live.submit("use_context_sync", {"gate": str(gate), "what": what})
        await gate.reached()
        await live.engine.cancel(ANYONE, record.task_id)
        await cleaned_up(gate)
        assert gate.notes("cleaned") == ["CancelledError"]
        assert (await live.now(record)).status == "cancelled"

    @pytest.mark.smoke
    @pytest.mark.shows("L26")
    async def test_a_job_that_its_worker_holds_back_never_runs(
        self, live: LiveServer, cancel_worker: WorkerProcess, gate: Gate, tmp_path: Path
    ) -> None:
        held = await live.submit("hold", {"gate": str(gate)})
        await gate.reached()
        record = await live.submit("touch", {"path": str(tmp_path / "ran")})
        await live.becomes(record, lambda now: now.claim is not None, "the worker has it")
        assert (await live.engine.cancel(ANYONE, record.task_id)).status == "cancelled"
        gate.open()
        await live.end_of(held)
        await goes_on(live)
        assert (await live.now(record)).status == "cancelled"
        assert lines(tmp_path / "ran") == []
        assert "Traceback" not in cancel_worker.logs_since_mark()

    @pytest.mark.shows("L28")
    async def test_a_job_that_waits_for_another_try_is_not_tried_again(self, live: LiveServer, tmp_path: Path) -> None:
        record = await live.submit("fails_at_first", {"path": str(tmp_path / "tries")}, config=cancelling.RETRIED)
        await live.becomes(record, lambda now: "retry 2" in (now.status_message or ""), "the second retry is announced")
        tries = len(lines(tmp_path / "tries"))
        cancelled = await live.engine.cancel(ANYONE, record.task_id)
        assert cancelled.status == "cancelled"
        other = await live.submit("fails_at_first", {"path": str(tmp_path / "other")}, config=cancelling.RETRIED)
        assert (await live.end_of(other)).record.status == "completed"  # its tries end later than ours would have
        assert await live.now(record) == cancelled
        assert len(lines(tmp_path / "tries")) == tries


class TestByAnOperator:
    @pytest.mark.shows("C3")
    @pytest.mark.parametrize("scope", [None, "s" * 200], ids=["whole", "shortened"])
    async def test_a_job_that_its_worker_holds_back_is_cancelled_before_its_turn(
        self, live: LiveServer, cancel_settings: Settings, gate: Gate, tmp_path: Path, scope: str | None
    ) -> None:
        held = await live.submit("hold", {"gate": str(gate)})
        await gate.reached()
        record = await live.submit("touch", {"path": str(tmp_path / "ran")}, caller=Caller(scope))
        await live.becomes(record, lambda now: now.claim is not None, "the worker has it")
        pushes = Pushes(live, record)
        await asyncio.to_thread(control_revoke, cancel_settings, record.job_id)
        ended = await pushes.end()
        assert (ended.status, ended.status_message) == ("cancelled", REVOKED)
        assert (await live.now(held)).status == "working"
        gate.open()
        await live.end_of(held)
        await goes_on(live)
        assert lines(tmp_path / "ran") == []

    @pytest.mark.shows("C3")
    async def test_a_job_still_in_the_broker_is_cancelled(
        self, live: LiveServer, cancel_settings: Settings, gate: Gate, tmp_path: Path
    ) -> None:
        held = [await live.submit("hold", {"gate": str(gate)}) for _ in range(8)]
        await gate.reached()
        record = await live.submit("touch", {"path": str(tmp_path / "ran")})
        pushes = Pushes(live, record)
        await asyncio.to_thread(control_revoke, cancel_settings, record.job_id)
        ended = await pushes.end()
        assert (ended.status, ended.status_message, ended.claim) == ("cancelled", REVOKED, None)
        gate.open()
        for one in held:
            assert (await live.end_of(one)).record.status == "completed"
        await goes_on(live)
        assert lines(tmp_path / "ran") == []

    @pytest.mark.smoke
    @pytest.mark.shows("C3")
    @pytest.mark.parametrize("flags", [(), ("--terminate",)], ids=["revoked", "terminated"])
    async def test_a_running_job_is_cancelled_and_pushed(
        self, live: LiveServer, cancel_settings: Settings, gate: Gate, flags: tuple[str, ...]
    ) -> None:
        record = await live.submit("hold", {"gate": str(gate)})
        await gate.reached()
        pushes = Pushes(live, record)
        if flags:
            live.app.control.revoke(record.job_id, terminate=True)
        else:
            await asyncio.to_thread(control_revoke, cancel_settings, record.job_id)
        ended = await pushes.end()
        assert (ended.status, ended.status_message) == ("cancelled", REVOKED)
        if not flags:  # then Celery lets it go on
            gate.open()
        await cleaned_up(gate)
        await goes_on(live)
        assert await live.now(record) == ended

    @pytest.mark.parametrize("what", cancelling.USES)
    @in_threads
    async def test_a_revoked_job_gets_an_error_when_it_uses_its_context(
        self, live: LiveServer, gate: Gate, what: str
    ) -> None:
        record = await live.submit("use_context", {"gate": str(gate), "what": what})
        await gate.reached()
        live.app.control.revoke(record.job_id)
        await cleaned_up(gate)
        assert gate.notes("cleaned") == ["CancelledError"]
        assert (await live.now(record)).status == "cancelled"
        await goes_on(live)

    @prefork_only
    @pytest.mark.parametrize("tool", ["use_context", "use_context_sync"])
    async def test_a_child_process_gets_an_error_when_it_reports_progress(
        self, live: LiveServer, gate: Gate, tool: str
    ) -> None:
        record = await live.submit(tool, {"gate": str(gate), "what": "progress"})
        [pid] = await gate.reached()
        live.app.control.revoke(record.job_id)
        await cleaned_up(gate)
        assert gate.notes("cleaned") == ["CancelledError"]
        await goes_on(live)
        assert psutil.pid_exists(pid)

    async def test_a_task_that_has_ended_stays_as_it_is(
        self, live: LiveServer, cancel_worker: WorkerProcess, gate: Gate
    ) -> None:
        completed = (await live.run("add", {"a": 2, "b": 2})).record
        live.app.control.revoke([completed.job_id, "4c4b0ba4-0d8a-4a2a-8e56-0c6e3bd1c2f5", "anon:gone:tool:add"])
        later = await live.submit("hold", {"gate": str(gate)})
        await gate.reached()
        pushes = Pushes(live, later)
        live.app.control.revoke(later.job_id)
        assert (await pushes.end()).status == "cancelled"
        view = await live.engine.get(ANYONE, completed.task_id)
        assert view.record == completed
        assert "could not cancel the task" not in cancel_worker.logs_since_mark()


@pytest.fixture
def state_database(tmp_path: Path) -> Callable[[str], Path]:
    """Makes what a worker that was run with ``--statedb`` has left."""

    def make(*job_ids: str) -> Path:
        path = tmp_path / "worker.state"
        state.revoked.update(job_ids)
        database = state.Persistent(state, str(path))
        database.save()
        state.revoked.clear()
        return path

    return make


class TestOverRestarts:
    async def test_only_tasks_whose_revoke_a_state_database_kept_are_cancelled(
        self, own: Starter, own_store: EmbeddedStoreContainer, pool: Pool, tmp_path: Path,
        state_database: Callable[..., Path],
    ) -> None:  # fmt: skip
        settings = settings_for(own_store, "statedb")
        async with live_server(cancelling.build, settings) as live:
            revoked = await live.submit("touch", {"path": str(tmp_path / "revoked")})
            kept = await live.submit("touch", {"path": str(tmp_path / "kept")})
            pushes = Pushes(live, revoked)
            path = state_database(revoked.job_id, f"{kept.job_id}!2", "somebody's", "anon:gone:tool:touch")
            worker = own.worker(SERVER, pool, settings, flags=("--statedb", str(path)))
            assert (await live.end_of(kept)).record.status == "completed"
            ended = await pushes.end()
            assert (ended.status, ended.status_message) == ("cancelled", REVOKED)
            assert "Traceback" not in worker.logs()
        assert lines(tmp_path / "revoked") == []

    @pytest.mark.parametrize("crash", ["worker", "store"])
    async def test_a_cancel_outlives_the_worker_and_the_store(
        self, own: Starter, own_store: EmbeddedStoreContainer, pool: Pool, gate: Gate, tmp_path: Path, crash: str
    ) -> None:
        """Whatever the broker delivers again, and whoever has forgotten the revoke."""
        settings = settings_for(own_store, "crash")
        names = ("held", "queued")
        async with live_server(cancelling.build, settings) as live:
            first = own.worker(SERVER, pool, settings, concurrency=1, flags=HELD)
            submissions = {"running": live.submission("hold", {"gate": str(gate)})}
            submissions |= {name: live.submission("touch", {"path": str(tmp_path / name)}) for name in names}
            retried = live.submission("fails_at_first", {"path": str(tmp_path / "retried")}, config=cancelling.RETRIED)
            records = {"retried": await live.engine.submit(retried)}
            await live.becomes(records["retried"], lambda now: now.status_message is not None, "it waits for a retry")
            records["running"] = await live.engine.submit(submissions["running"])
            await gate.reached()
            records["held"] = await live.engine.submit(submissions["held"])
            await live.becomes(records["held"], lambda now: now.claim is not None, "the worker has it")
            tries = len(lines(tmp_path / "retried"))

            if crash == "worker":
                first.kill()
                records["queued"] = await live.engine.submit(submissions["queued"])
            cancelled = {name: await live.engine.cancel(ANYONE, record.task_id) for name, record in records.items()}
            if crash == "store":
                own_store.crash()
                own_store.start()
                first.kill()
            assert {record.status for record in cancelled.values()} == {"cancelled"}

            second = own.worker(SERVER, pool, settings)
            for name, record in records.items():
                await live.publish_again(record, {**submissions, "retried": retried}[name])
            await goes_on(live)
            for record in records.values():
                await eventually(
                    lambda record=record: f"job {with_short_ids(record.job_id)} does not run" in second.logs()
                )
            for name, record in records.items():
                assert await live.now(record) == cancelled[name]
        assert (lines(tmp_path / "held"), lines(tmp_path / "queued")) == ([], [])
        assert len(lines(tmp_path / "retried")) == tries
        assert len(gate.arrived()) == 1
