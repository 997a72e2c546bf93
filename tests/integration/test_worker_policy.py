"""What a component declares in Celery's own words, kept on every pool."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from mcp_celery import Settings
from mcp_celery.engine import Caller, TaskRecord
from tests.integration.conftest import Starter, lines, settings_for, texts_of
from tests.support.live import LiveServer, celery_events, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, WorkerProcess
from tests.support.servers import policy
from tests.support.waiting import eventually

pytestmark = [pytest.mark.anyio, pytest.mark.each_pool]

SERVER = "tests.support.servers.policy:server"


@pytest.fixture(scope="module", params=["asyncio", "prefork", "threads", "solo"])
def pool(request: pytest.FixtureRequest) -> Pool:
    """Every pool that Celery has for us; ``solo`` keeps whatever a component declares that needs no second thread."""
    return request.param


@pytest.fixture(scope="module")
def policy_settings(store: EmbeddedStoreContainer, pool: Pool) -> Settings:
    return settings_for(store, f"policy-{pool}")


@pytest.fixture(scope="module")
def policy_worker(shared: Starter, policy_settings: Settings, pool: Pool) -> Generator[WorkerProcess]:
    worker = shared.worker(SERVER, pool, policy_settings)
    yield worker
    worker.teardown()


@pytest.fixture
async def live(policy_worker: WorkerProcess, policy_settings: Settings) -> AsyncGenerator[LiveServer]:
    async with live_server(policy.build, policy_settings) as server:
        yield server


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """What the bodies write."""
    return tmp_path / "notes"


@pytest.mark.smoke
@pytest.mark.shows("C5")
@pytest.mark.parametrize("tool", ["comes_back", "comes_back_sync"])
async def test_a_tool_that_raises_a_declared_exception_is_tried_again(
    live: LiveServer, notes: Path, tmp_path: Path, tool: str
) -> None:
    seen_at = tmp_path / "seen"
    arguments = {"path": str(notes), "failures": 2, "until": str(seen_at)}
    record = await live.submit(tool, arguments, config=policy.PERSISTENT)
    seen: list[tuple[str, str | None]] = []
    async with live.engine.watch(live.submission(tool).caller, [record.task_id]) as watch:
        async for view in watch:
            seen.append((view.record.status, view.record.status_message))
            if view.record.status_message == "Trying again: retry 2 of 3":
                seen_at.touch()
    assert [status for status, _ in seen][-1] == "completed"
    assert [status for status, _ in seen].count("completed") == 1
    assert {"working"} == {status for status, _ in seen[:-1]}
    assert "Trying again: retry 2 of 3" in {message for _, message in seen}
    assert len(lines(notes)) == 3


async def test_only_the_log_says_why_a_job_is_tried_again(
    live: LiveServer, policy_worker: WorkerProcess, notes: Path
) -> None:
    with celery_events(live.app) as events:
        record = await live.submit("comes_back", {"path": str(notes), "failures": 1}, config=policy.PERSISTENT)
        await live.end_of(record)
        await eventually(lambda: "task-succeeded" in events.kinds_of(record.job_id), what="the job's last event")
        (retried,) = [event for event in events.of(record.job_id) if event["type"] == "task-retried"]
    assert "ConnectionError()" in retried["exception"]
    assert "not yet" not in texts_of(events.all())
    assert "ConnectionError('not yet')" in policy_worker.logs_since_mark()


@pytest.mark.shows("C5")
async def test_the_outcome_of_the_last_try_is_the_tasks(live: LiveServer, notes: Path) -> None:
    view = await live.run("comes_back", {"path": str(notes), "failures": 99}, config=policy.PERSISTENT)
    assert len(lines(notes)) == 4
    assert view.record.status == "completed"
    assert view.result is not None
    assert view.result["isError"] is True


async def test_other_exceptions_are_not_tried_again(live: LiveServer, notes: Path) -> None:
    view = await live.run("fails_otherwise", {"path": str(notes)}, config=policy.PERSISTENT)
    assert len(lines(notes)) == 1
    assert view.record.is_error


async def test_retries_wait_as_declared(live: LiveServer, notes: Path) -> None:
    assert await live.text_of("waits_between", {"path": str(notes)}) == "came back"
    first, second = map(float, lines(notes))
    assert second - first >= 1


async def test_a_rate_limit_spaces_the_jobs(live: LiveServer, notes: Path) -> None:
    records = [await live.submit("limited", {"path": str(notes)}) for _ in range(4)]
    for record in records:
        await live.end_of(record)
    begun = sorted(map(float, lines(notes)))
    assert begun[-1] - begun[0] >= 0.9  # four at two a second


@pytest.mark.smoke
async def test_a_job_that_no_worker_begins_in_time_fails(live: LiveServer) -> None:
    # Submitted to a queue that nobody consumes.
    record = await live.submit("elsewhere", config=policy.TaskConfig(queue="nobody", expires=0.2))

    async def given_up() -> TaskRecord | None:
        found = (await live.engine.get(Caller(), record.task_id)).record
        return found if found.is_terminal else None

    ended = await eventually(given_up, what="the job is given up")
    assert ended is not None
    assert (ended.status, ended.status_message) == ("failed", "The job expired before a worker could start it")


async def test_a_job_that_begins_in_time_does_not_expire(live: LiveServer, notes: Path) -> None:
    config = policy.TaskConfig(expires=60)
    assert await live.text_of("brief", {"path": str(notes)}, config=config) == "done"


async def test_a_job_waits_in_the_declared_queue(live: LiveServer, policy_worker: WorkerProcess) -> None:
    record = await live.submit("elsewhere", config=policy.TaskConfig(queue="elsewhere", priority=9))
    with live.redis() as store:
        # Redis has a list for each step of priority.
        await eventually(lambda: sum(int(store.llen(key)) for key in store.scan_iter("elsewhere*", _type="list")))  # type: ignore[arg-type]
    assert (await live.now(record)).claim is None


@pytest.mark.smoke
@pytest.mark.parametrize("pool", ["asyncio", "prefork"], indirect=True)
async def test_a_soft_time_limit_interrupts_the_body(live: LiveServer, notes: Path) -> None:
    view = await live.run("softly", {"path": str(notes)})
    assert view.record.status_message == "The job exceeded its soft time limit"
    assert lines(notes) == ["interrupted"]


@pytest.mark.parametrize("pool", ["asyncio", "prefork"], indirect=True)
async def test_a_hard_time_limit_ends_the_job(live: LiveServer) -> None:
    view = await live.run("hard")
    assert view.record.status == "failed"
    assert view.record.status_message == "The job exceeded its time limit and was ended"


@pytest.mark.shows("L27")
@pytest.mark.parametrize("pool", ["asyncio"], indirect=True)
async def test_a_cancelled_coroutine_runs_its_finally_blocks(live: LiveServer, notes: Path) -> None:
    record = await live.submit("cancelled", {"path": str(notes)})
    await eventually(lambda: lines(notes) == ["began"])
    assert (await live.engine.cancel(live.submission("cancelled").caller, record.task_id)).status == "cancelled"
    await eventually(lambda: lines(notes) == ["began", "cleaned up"])
    assert (await live.now(record)).status == "cancelled"


@pytest.mark.shows("C9")
@pytest.mark.parametrize("pool", ["asyncio"], indirect=True)
async def test_the_hosts_annotations_and_routes_hold_by_job_name(
    own: Starter, store: EmbeddedStoreContainer, pool: Pool, tmp_path: Path
) -> None:
    settings = settings_for(store, "annotated")
    conf = {"CELERY_CONFIG_MODULE": "tests.support.servers.annotations"}
    own.worker(SERVER, pool, settings, env=conf)
    async with live_server(policy.build, settings) as live:
        # The component declares no limit, and a rate of its own; the host says otherwise.
        assert (await live.run("annotated")).record.status_message == "The job exceeded its time limit and was ended"
        records = [await live.submit("limited", {"path": str(tmp_path / "ran")}) for _ in range(6)]
        for record in records:
            assert (await live.end_of(record)).record.status == "completed"
        begun = sorted(map(float, lines(tmp_path / "ran")))
    assert begun[-1] - begun[0] < 2  # six at two a second would take longer
