"""Somebody else's jobs as tools: their workers run them, in a venv that has nothing of ours."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from mcp.client import Client
from mcp_types import CallToolResult, TextContent
from pydantic import BaseModel

from mcp_celery import Settings, TaskMeta, TaskServer
from mcp_celery.common.redis_translation import celery_url
from tests.support.brokers import delete_queues
from tests.support.deployment import Deployment, deployed, process
from tests.support.live import Gate, celery_events, host_app
from tests.support.session import Session, over_http
from tests.support.their_worker import host_environment, host_worker, interpreter_without_us
from tests.support.waiting import eventually, soon
from tests.support.wire import JSON, Wire, follow

pytestmark = pytest.mark.anyio

SPEC = "tests.support.servers.exposing:server"
OWN_NAMES = {"own"}
Gates = Callable[[], Gate]
CANVASES = {"added_up", "side_by_side", "in_total", "with_a_failing_part", "of_forgetful_jobs"}


@pytest.fixture(scope="module")
def their_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interpreter_without_us(tmp_path_factory.mktemp("host") / "venv")


@pytest.fixture(scope="module")
def exposing(store_url: str, their_python: Path) -> Iterator[Deployment]:
    """A store, and the host's own worker, which sends events. No worker of ours."""
    variables = host_environment(store_url, "exposed")
    with (
        deployed(store_url, "exposed", spec=SPEC, settings=variables) as found,
        host_worker(their_python, found, variables, "-E"),
    ):
        yield found


@pytest.fixture
def alone(store_url: str, exposing: Deployment) -> Iterator[Deployment]:
    """The same host's jobs, whose tasks no other server watches."""
    with deployed(store_url, "exposed-alone", spec=SPEC, settings=exposing.settings) as found:
        yield found


@pytest.fixture(scope="module")
def url(exposing: Deployment) -> str:
    return exposing.serve(MCP_CELERY_EXPOSED_INTERVAL_MS="100")


@pytest.fixture
async def wire(url: str) -> AsyncGenerator[Wire]:
    async with Wire(url) as wire:
        yield wire


@pytest.fixture
async def session(url: str) -> AsyncGenerator[Session]:
    async with over_http(url) as session:
        yield session


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[Gates]:
    made: list[Gate] = []

    def another() -> Gate:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Gate(folder))
        return made[-1]

    yield another
    for gate in made:
        gate.open()


async def end_of(wire: Wire, tool: str, **arguments: Any) -> JSON:
    """Create a task, and follow it to its end by push."""
    created = await wire.create(tool, **arguments)
    return (await soon(follow(wire, created["taskId"])))[-1]


async def text_of(wire: Wire, tool: str, **arguments: Any) -> str:
    ended = await end_of(wire, tool, **arguments)
    assert ended["status"] == "completed", ended
    return ended["result"]["content"][0]["text"]


async def becomes(wire: Wire, task_id: str, holds: Callable[[JSON], object]) -> JSON:
    """Wait until a task is as it should be."""

    async def found() -> JSON | None:
        task = await wire.get(task_id)
        return task if holds(task) else None

    task = await eventually(found, what="the task becomes what it should")
    assert task is not None
    return task


# --- What is shown


async def test_tools_have_the_schema_of_their_jobs(wire: Wire) -> None:
    tools = {tool["name"]: tool for tool in (await wire.ask("tools/list")).result["tools"]}
    report = tools["build_report"]
    assert report["description"] == "Build the yearly report."
    assert report["inputSchema"]["required"] == ["year"]
    assert {name: one["type"] for name, one in report["inputSchema"]["properties"].items()} == {
        "year": "integer",
        "draft": "boolean",
    }
    assert report["outputSchema"]["type"] == "object"
    assert list(tools["reports_jobs_slowly"]["inputSchema"]["properties"]) == ["gate", "current", "total", "message"]
    assert tools["add_by_name"]["inputSchema"]["properties"]["left"]["minimum"] == 0
    assert list(tools["added_up"]["inputSchema"]["properties"]) == ["first", "second", "third"]


async def test_only_named_jobs_are_exposed(wire: Wire) -> None:
    names = {tool["name"] for tool in (await wire.ask("tools/list")).result["tools"]}
    by_name = {"build_report", "add_by_name", "reports_jobs_raises", "odd_fails", "remembered"}
    by_name |= {"wait", "wait_or_end", "wait_a_moment", "wait_nowhere"}
    listed = {"surroundings", "slowly", "in_own_state", "flaky", "too_slow", "dies", "routed", "dated"}
    assert names == OWN_NAMES | CANVASES | by_name | {f"reports_jobs_{name}" for name in listed}


# --- Results


async def test_a_job_runs_where_it_always_ran(wire: Wire) -> None:
    there = await end_of(wire, "reports_jobs_surroundings")
    assert there["result"]["structuredContent"]["ours"] is False


async def test_a_result_is_that_of_a_tool(wire: Wire) -> None:
    ended = await end_of(wire, "build_report", year=2026, draft=True)
    assert ended["status"] == "completed", ended
    assert ended["result"]["structuredContent"] == {"year": 2026, "region": "eu", "draft": True}


async def test_a_result_is_that_of_a_tool_in_the_older_era(session: Session) -> None:
    created = await session.create("build_report", year=2026)
    assert (await session.ended(created["taskId"]))[-1]["status"] == "completed"
    result = (await session.result(created["taskId"])).result
    assert result["structuredContent"] == {"year": 2026, "region": "eu", "draft": False}


async def test_a_client_without_tasks_waits_for_the_job(url: str) -> None:
    async with Wire(url, extension=False) as wire:
        answer = (await wire.call("build_report", year=1)).result
    assert answer["structuredContent"] == {"year": 1, "region": "eu", "draft": False}


async def test_a_job_known_by_name_takes_what_its_model_says(wire: Wire) -> None:
    assert await text_of(wire, "add_by_name", left=1, right=2) == "3"
    refused = (await wire.call("add_by_name", left=-1)).result
    assert refused["isError"]
    assert "left" in refused["content"][0]["text"]


async def test_values_arrive_as_the_type_hints_say(wire: Wire) -> None:
    assert await text_of(wire, "reports_jobs_dated", day="2026-07-28") == "date 2026-07-28"


async def test_a_job_goes_the_way_that_its_app_routes_it(wire: Wire) -> None:
    assert await text_of(wire, "reports_jobs_routed") == "reports-exposed-routed"


async def test_a_result_is_kept_for_a_call_over_mcp(wire: Wire) -> None:
    assert await text_of(wire, "remembered") == "never stored"


async def test_an_exception_is_a_tool_error_and_shows_only_text_that_is_allowed(wire: Wire) -> None:
    ended = await end_of(wire, "reports_jobs_raises", year=1800)
    assert ended["status"] == "completed"
    assert ended["result"]["isError"]
    text = "Error executing tool reports_jobs_raises: there is no report of 1800"
    assert ended["result"]["content"][0]["text"] == text
    assert ended["statusMessage"] == text
    ended = await end_of(wire, "odd_fails", number=1)
    assert ended["result"]["content"][0]["text"] == "Error executing tool odd_fails"


async def test_a_job_that_celery_ended_has_failed(wire: Wire) -> None:
    ended = await end_of(wire, "reports_jobs_too_slow")
    assert (ended["status"], ended["error"]["message"]) == ("failed", "The job exceeded its soft time limit")
    ended = await end_of(wire, "reports_jobs_dies")
    assert ended["error"]["message"] == "The worker process that ran the job ended unexpectedly"


# --- On the way


async def test_progress_becomes_the_status_message(wire: Wire, gate: Gate) -> None:
    created = await wire.create("reports_jobs_slowly", gate=str(gate), message="reading")
    async with wire.listen([created["taskId"]]) as events:
        async for event in events:
            if event.get("params", {}).get("statusMessage") == "reading":
                gate.open()
                break
    task = await becomes(wire, created["taskId"], lambda task: task["status"] == "completed")
    assert task["result"]["content"][0]["text"] == "done"


async def test_progress_without_a_message_shows_its_numbers(session: Session, gate: Gate) -> None:
    created = await session.call("reports_jobs_slowly", task={}, gate=str(gate), _meta={"progressToken": 7})
    task_id = created.result["task"]["taskId"]

    def told() -> bool:
        return any(one.get("statusMessage") == "3 of 10" for one in session.statuses(task_id))

    await eventually(told, what="the numbers are pushed")
    gate.open()
    assert (await session.ended(task_id))[-1]["status"] == "completed"


async def test_a_custom_state_of_a_job_is_shown_by_its_name(wire: Wire, gate: Gate) -> None:
    created = await wire.create("reports_jobs_in_own_state", gate=str(gate))
    await becomes(wire, created["taskId"], lambda task: task.get("statusMessage") == "UPLOADING")


async def test_a_job_that_is_tried_again_keeps_its_task_working(wire: Wire, gate: Gate) -> None:
    created = await wire.create("reports_jobs_flaky", folder=str(gate))
    await gate.reached()
    gate.open()
    statuses = await follow(wire, created["taskId"])
    assert statuses[-1]["result"]["structuredContent"] == {"result": 3}
    assert {one["status"] for one in statuses[:-1]} <= {"working"}


async def test_a_change_is_pushed_on_any_replica(wire: Wire, exposing: Deployment, gate: Gate) -> None:
    """On one that neither made the task nor looks for itself before the test is over."""
    async with Wire(exposing.serve(MCP_CELERY_EXPOSED_INTERVAL_MS="600000", MCP_CELERY_EXPOSED_EVENTS="0")) as other:
        created = await wire.create("reports_jobs_slowly", gate=str(gate), message="here")
        async with other.listen([created["taskId"]]) as events:
            async for event in events:
                if event.get("params", {}).get("statusMessage") == "here":
                    break
        assert (await other.get(created["taskId"]))["statusMessage"] == "here"


async def test_celerys_events_report_a_change_before_the_next_poll(alone: Deployment, gate: Gate, gates: Gates) -> None:
    """No request looks at the result: the record is read in the store. The watcher looks once in ten minutes."""
    store: Any = alone.redis

    async def is_told() -> bool:
        held = gates()
        task_id = (await wire.create("wait", gate=str(held)))["taskId"]
        record = f"mcp_celery:{alone.namespace}:task:anon:{task_id}"
        await held.reached()
        with suppress(AssertionError):
            await eventually(lambda: store.hexists(record, "started_at_ms"), seconds=2)
            held.open()
            await eventually(lambda: store.hget(record, "status") == "completed", seconds=2)
            return True
        held.open()
        return False  # the server does not say when it begins to listen: not yet when this job started, or ended

    async with Wire(alone.serve(MCP_CELERY_EXPOSED_INTERVAL_MS="600000")) as wire:
        await wire.create("wait", gate=str(gate))  # while it is open, its server listens
        await eventually(is_told, what="an event is heard")
    store.close()


# --- Cancelling, expiring


async def test_a_cancelled_job_keeps_running_and_its_outcome_is_dropped(wire: Wire, gate: Gate) -> None:
    created = await wire.create("wait", gate=str(gate))
    await gate.reached()
    await wire.ask("tasks/cancel", {"taskId": created["taskId"]})
    gate.open()
    await eventually(lambda: gate.notes("notes"), what="the job ends")
    assert (await wire.get(created["taskId"]))["status"] == "cancelled"


async def test_a_cancel_ends_the_job_where_that_is_declared(session: Session, gate: Gate) -> None:
    created = await session.create("wait_or_end", gate=str(gate))
    (process,) = await gate.reached()
    cancelled = (await session.ask("tasks/cancel", taskId=created["taskId"])).result
    assert cancelled["status"] == "cancelled"
    await eventually(lambda: not Path(f"/proc/{process}").exists(), what="the job's process is ended")
    gate.open()
    assert gate.notes("notes") == []
    assert (await session.get(created["taskId"]))["status"] == "cancelled"


async def test_a_job_that_no_worker_begins_in_time_fails(wire: Wire, gate: Gate) -> None:
    ended = await end_of(wire, "wait_nowhere", gate=str(gate))
    assert (ended["status"], ended["error"]["message"]) == ("failed", "The job expired before a worker could start it")


async def test_a_job_that_began_in_time_may_last(wire: Wire, gate: Gate) -> None:
    created = await wire.create("wait_a_moment", gate=str(gate))
    await gate.reached()
    later = await wire.create("wait_nowhere", gate=str(gate))
    await becomes(wire, later["taskId"], lambda task: task["status"] == "failed")  # now it would be too late
    assert (await wire.get(created["taskId"]))["status"] == "working"
    gate.open()
    await becomes(wire, created["taskId"], lambda task: task["status"] == "completed")


@pytest.mark.slow
async def test_an_event_shows_that_a_job_began_in_time(
    store_url: str, their_python: Path, gates: Gates, gate: Gate
) -> None:
    """Without ``task_track_started`` the result backend knows no more of it than of one that waits."""
    namespace = "exposed-untracked"
    variables = host_environment(store_url, namespace) | {"REPORTS_UNTRACKED": "1"}
    with (
        deployed(store_url, namespace, spec=SPEC, settings=variables) as found,
        host_worker(their_python, found, variables, "-E"),
    ):
        store: Any = found.redis
        async with Wire(found.serve(MCP_CELERY_EXPOSED_INTERVAL_MS="100")) as wire:
            await wire.create("wait", gate=str(gate))  # while it is open, its server listens

            async def is_told() -> tuple[str, Gate] | None:
                held = gates()
                task_id = (await wire.create("wait_a_moment", gate=str(held)))["taskId"]
                await held.reached()
                record = f"mcp_celery:{found.namespace}:task:anon:{task_id}"
                with suppress(AssertionError):
                    await eventually(lambda: store.hexists(record, "started_at_ms"), seconds=2)
                    return task_id, held
                return None  # the server may not have listened yet, which it does not say

            told = await eventually(is_told, what="an event is heard")
            assert told is not None
            task_id, held = told
            later = await wire.create("wait_nowhere", gate=str(gate))
            await becomes(wire, later["taskId"], lambda task: task["status"] == "failed")  # now it would be too late
            assert (await wire.get(task_id))["status"] == "working"
            held.open()
            ended = await becomes(wire, task_id, lambda task: task["status"] == "completed")
            assert ended["result"]["content"][0]["text"] == "ended"
        store.close()


# --- Several jobs


async def test_a_chain_gives_the_result_of_its_last_job(wire: Wire) -> None:
    ended = await end_of(wire, "added_up", first=1, second=2, third=3)
    assert ended["status"] == "completed", ended
    assert ended["result"]["content"][0]["text"] == "6"


async def test_a_group_gives_a_list_and_counts_its_jobs(wire: Wire, gate: Gate) -> None:
    created = await wire.create("side_by_side", gate=str(gate), count=3)
    counted = await becomes(wire, created["taskId"], lambda task: task.get("statusMessage") == "1 of 3 jobs done")
    assert counted["status"] == "working"
    gate.open()
    ended = await becomes(wire, created["taskId"], lambda task: task["status"] == "completed")
    assert [one["text"] for one in ended["result"]["content"]] == ["1", "2", "3"]


async def test_a_chord_counts_its_jobs_and_gives_the_result_of_its_body(session: Session, gate: Gate) -> None:
    created = await session.create("in_total", gate=str(gate), count=3)

    def told() -> bool:
        return any(one.get("statusMessage") == "1 of 4 jobs done" for one in session.statuses(created["taskId"]))

    await eventually(told, what="its progress is pushed")
    gate.open()
    assert (await session.ended(created["taskId"]))[-1]["status"] == "completed"
    assert (await session.result(created["taskId"])).result["content"][0]["text"] == "6"


async def test_every_part_keeps_its_result(wire: Wire) -> None:
    ended = await end_of(wire, "of_forgetful_jobs")
    assert ended["status"] == "completed", ended
    assert [one["text"] for one in ended["result"]["content"]] == ["never stored", "never stored"]


async def test_a_part_that_raises_is_the_tools_error(wire: Wire) -> None:
    ended = await end_of(wire, "with_a_failing_part", count=2)
    assert ended["status"] == "completed", ended
    assert ended["result"]["content"][0]["text"] == "Error executing tool with_a_failing_part"


async def test_a_cancel_revokes_every_part(wire: Wire, gate: Gate) -> None:
    created = await wire.create("in_total", gate=str(gate), count=3)
    processes = await gate.reached(2)
    await wire.ask("tasks/cancel", {"taskId": created["taskId"]})

    def ended() -> bool:
        return not any(Path(f"/proc/{process}").exists() for process in processes)

    await eventually(ended, what="the processes of both jobs are ended")
    assert (await wire.get(created["taskId"]))["status"] == "cancelled"


async def test_too_many_jobs_are_refused(wire: Wire, gate: Gate) -> None:
    error = (await wire.call("side_by_side", gate=str(gate), count=1_001)).error
    assert (error["code"], error["message"]) == (
        -32602,
        "Tool 'side_by_side' made 1001 jobs of these arguments, not 1…1000",
    )


# --- Around


async def test_arguments_are_shown_where_they_are_declared_to_be(wire: Wire, exposing: Deployment) -> None:
    app = Celery(broker=celery_url(exposing.store_url), set_as_current=False)
    with app, celery_events(app) as log:
        created = await wire.create("add_by_name", left=11, right=22)
        job_id = f"anon:{created['taskId']}:tool:add_by_name"
        await eventually(lambda: "task-succeeded" in log.kinds_of(job_id), what="the worker tells of the job")
        (received,) = [event for event in log.of(job_id) if event["type"] == "task-received"]
    assert received["kwargs"] == "{'left': 11, 'right': <hidden>}"
    assert received["name"] == "reports.jobs.add"


@pytest.mark.slow
async def test_an_expired_task_is_ended_and_its_result_forgotten(alone: Deployment, gate: Gate) -> None:
    # Results are forgotten three heartbeats after the end: time for the worker to store that it ended the job.
    async with over_http(alone.serve(MCP_CELERY_HEARTBEAT_MS="3000", MCP_CELERY_EXPOSED_INTERVAL_MS="100")) as session:
        created = await session.call("wait_or_end", task={"ttl": 3_000}, gate=str(gate))
        task_id = created.result["task"]["taskId"]
        (process,) = await gate.reached()
        await eventually(lambda: not Path(f"/proc/{process}").exists(), what="the job's process is ended")
        await eventually(
            lambda: not any(task_id in one for one in alone.contents()), what="nothing is left", seconds=60
        )


async def test_a_task_can_be_made_in_process(exposing: Deployment) -> None:
    settings = Settings.load(redis_url=exposing.store_url, namespace="exposed-inside", exposed_interval_ms=100)

    class Numbers(BaseModel):
        left: int
        right: int

    with host_app(settings, task_default_queue=exposing.settings["REPORTS_QUEUE"]) as app:
        server = TaskServer("inside", celery=app, settings=settings)
        server.expose("reports.jobs.add", arguments=Numbers)
        async with Client(server) as client:
            task = await server.call_tool("reports_jobs_add", {"left": 1, "right": 2}, task_meta=TaskMeta())
            result = await task.result()
            assert isinstance(result, CallToolResult)
            assert isinstance(result.content[0], TextContent)
            assert result.content[0].text == "3"
            waited = await client.call_tool("reports_jobs_add", {"left": 2, "right": 2})
            assert isinstance(waited.content[0], TextContent)
            assert waited.content[0].text == "4"


@pytest.mark.slow
async def test_jobs_of_another_broker_and_result_backend_are_exposed(
    store_url: str, their_python: Path, tmp_path: Path, gate: Gate, rabbitmq_url: str
) -> None:
    """RabbitMQ, and results in a database, of which one is read at a time."""
    namespace = f"exposed-{os.urandom(4).hex()}"
    variables = host_environment(
        store_url, namespace, broker=rabbitmq_url, backend=f"db+sqlite:///{tmp_path}/results.db"
    )
    with (
        deployed(store_url, namespace, spec=SPEC, settings=variables) as found,
        host_worker(their_python, found, variables, "-E"),
    ):
        async with Wire(found.serve(MCP_CELERY_EXPOSED_INTERVAL_MS="100")) as wire:
            report = await end_of(wire, "build_report", year=2026)
            assert report["result"]["structuredContent"]["year"] == 2026
            created = await wire.create("reports_jobs_slowly", gate=str(gate), message="reading")
            await becomes(wire, created["taskId"], lambda task: task.get("statusMessage") == "reading")
            gate.open()
            await becomes(wire, created["taskId"], lambda task: task["status"] == "completed")
            ended = await end_of(wire, "reports_jobs_raises", year=1)
            assert ended["result"]["content"][0]["text"].endswith("there is no report of 1")
            ended = await end_of(wire, "in_total", gate=str(gate), count=2)
            assert ended["result"]["content"][0]["text"] == "3"
    queue = variables["REPORTS_QUEUE"]
    delete_queues(rabbitmq_url, queue, f"{queue}-routed")


@pytest.mark.slow
async def test_the_example_of_an_existing_app_exposes_its_jobs(store_url: str) -> None:
    """A worker that has ours as well treats them as any other."""
    shop = {"SHOP_BROKER_URL": celery_url(store_url), "SHOP_RESULT_BACKEND": celery_url(store_url)}
    spec = "workers.existing_app.mcp:server"
    with deployed(store_url, "exposed-shop", spec=spec, settings=shop) as found:
        argv = [sys.executable, "-m", "celery", "-A", "workers.existing_app", "worker", "-l", "INFO", "-c", "4"]
        with process(argv, found.env(), found.folder / "shop.log") as worker:
            async with Wire(found.serve()) as wire:
                told = await end_of(wire, "build_report", year=2026)
                assert told["result"]["structuredContent"]["months"] == 12
                added = await end_of(wire, "build_by_quarters", year=2026)
                assert json.loads(added["result"]["content"][0]["text"]) == told["result"]["structuredContent"]
            assert worker.poll() is None


async def test_task_always_eager_runs_them_in_the_server(alone: Deployment) -> None:
    async with Wire(alone.serve(REPORTS_EAGER="1")) as wire:
        assert (await end_of(wire, "reports_jobs_surroundings"))["result"]["structuredContent"]["ours"] is True
        ended = await end_of(wire, "reports_jobs_raises", year=1)
        assert ended["result"]["content"][0]["text"].endswith("there is no report of 1")
        refused = (await wire.call("added_up", first=1, second=2, third=3)).error
        assert refused["message"] == "The task queue is unavailable; no task was created, try again later"
