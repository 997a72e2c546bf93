"""What a tool finds in a worker: the same as in the foreground, and the identity of nobody else."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mcp_celery import TaskContextSnapshot
from mcp_celery.context import CallerToken, scope_of
from mcp_celery.engine import Caller
from tests.integration.conftest import TOOLS, Starter, lines, settings_for
from tests.support.live import REVISION, Gate, LiveServer, celery_events, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, WorkerNode
from tests.support.servers import exposing_by_name, tools
from tests.support.waiting import eventually, eventually_sync

pytestmark = pytest.mark.anyio

ISSUER = "https://issuer.example"


def signed_in(name: str, **values: Any) -> dict[str, Any]:
    """What a request of somebody with a token carries."""
    token = CallerToken("client-a", ["read"], name, {"iss": ISSUER})
    snapshot = TaskContextSnapshot(protocol_version=REVISION, token=token, **values)
    return {"caller": Caller(scope_of("client-a", name), ISSUER), "snapshot": snapshot}


async def test_the_nodes_of_the_test_server_make_a_celery_setup(celery_setup: Any, worker: WorkerNode) -> None:
    assert celery_setup.ready(ping=False, control=True, docker=True)
    assert len(celery_setup) == 3
    assert worker.hostname() in celery_setup.app.control.inspect().ping()
    assert len(worker.get_running_processes_info(["pid", "name"])) >= 1


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_an_async_tool_runs_as_a_job(live: LiveServer) -> None:
    assert await live.text_of("add", {"a": 2, "b": 3}) == "5"


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_a_sync_tool_runs_as_a_job(live: LiveServer) -> None:
    assert await live.text_of("add_sync", {"a": 2, "b": 3}) == "5"


async def test_structured_output_arrives_beside_its_text(live: LiveServer) -> None:
    view = await live.run("weather", {"city": "Oslo"})
    assert view.result is not None
    assert view.result["structuredContent"] == {"city": "Oslo", "celsius": -3.5, "warnings": []}
    assert json.loads(view.result["content"][0]["text"]) == view.result["structuredContent"]


async def test_an_image_arrives_as_image_content(live: LiveServer) -> None:
    view = await live.run("picture")
    assert view.result is not None
    assert view.result["content"] == [
        {"type": "image", "mimeType": "image/png", "data": base64.b64encode(tools.PIXEL).decode()}
    ]


async def test_a_tool_reads_the_servers_resources(live: LiveServer) -> None:
    assert await live.text_of("read_greeting") == "hello from a resource"


async def test_a_tool_runs_in_the_worker_and_finds_the_lifespans_state(live: LiveServer, worker: WorkerNode) -> None:
    state = await live.structured("lifespan_state")
    assert state["pid"] == state["worker"]
    assert state["pid"] in {process["pid"] for process in worker.get_running_processes_info(["pid"])}


async def test_a_tool_can_read_its_request(live: LiveServer) -> None:
    snapshot = TaskContextSnapshot.capture(
        protocol_version=REVISION,
        request_id="request-77",
        headers={"X-Tenant": "acme", "Traceparent": "00-1-2-01", "Authorization": "Bearer s3cret", "Cookie": "a=b"},
        header_names=live.settings.header_names,
        session_id="session-9",
    )
    found = await live.structured("whereabouts", snapshot=snapshot)
    assert found["request_id"] == "request-77"
    assert found["session_id"] == "session-9"
    assert found["headers"] == {"x-tenant": "acme", "traceparent": "00-1-2-01"}


async def test_a_tool_without_http_finds_no_headers(live: LiveServer) -> None:
    assert (await live.structured("whereabouts"))["headers"] is None


async def test_a_tool_can_read_its_task(live: LiveServer) -> None:
    record = await live.submit("whereabouts")
    view = await live.end_of(record)
    assert view.result is not None
    found = view.result["structuredContent"]
    assert found["task_id"] == record.task_id
    assert found["job_id"] == record.job_id
    assert found["namespace"] == live.tasks.namespace
    assert found["attempt"] == 1
    assert found["server"] == "tools"


async def test_a_tool_can_read_its_caller_but_not_the_token(live: LiveServer) -> None:
    found = await live.structured("whereabouts", **signed_in("alice"))
    assert (found["client_id"], found["subject"]) == ("client-a", "alice")
    assert found["scope"] == "client-a|alice"
    assert found["token"] == ""


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_callers_that_run_together_and_after_each_other_stay_apart(
    live: LiveServer, gates: Callable[[], Gate]
) -> None:
    first, second = gates(), gates()
    alice = await live.submit("whereabouts", {"gate": str(first)}, **signed_in("alice"))
    bob = await live.submit("whereabouts", {"gate": str(second)}, **signed_in("bob"))
    await asyncio.gather(first.reached(), second.reached())
    second.open()
    first.open()
    views = [await live.end_of(record) for record in (alice, bob)]
    subjects = [view.result["structuredContent"]["subject"] for view in views if view.result]
    assert subjects == ["alice", "bob"]
    for _ in range(4):  # whichever process or thread takes it
        found = await live.structured("whereabouts")
        assert (found["client_id"], found["subject"], found["scope"]) == (None, None, None)


@pytest.mark.each_pool
@pytest.mark.parametrize("tool", ["remember", "remember_sync"])
async def test_context_variables_that_a_job_sets_end_with_it(live: LiveServer, tool: str) -> None:
    found = [await live.text_of(tool, {"value": f"job {number}"}) for number in range(4)]
    assert found == ["nothing"] * 4


@pytest.mark.each_pool
async def test_jobs_of_one_worker_run_at_the_same_time(live: LiveServer, gate: Gate) -> None:
    records = [await live.submit(tool, {"gate": str(gate)}) for tool in ("hold", "hold_sync")]
    await gate.reached(2)
    gate.open()
    assert [(await live.end_of(record)).record.status for record in records] == ["completed", "completed"]


@pytest.mark.each_pool
async def test_the_last_events_of_a_worker_that_stops_are_sent(
    own: Starter, pool: Pool, store: EmbeddedStoreContainer, gate: Gate
) -> None:
    """They wait a moment for others, and a worker that stops has none."""
    settings = settings_for(store, f"last-events-{pool}")
    worker = own.worker(TOOLS, pool, settings)
    async with live_server(tools.build, settings) as live:
        with celery_events(live.app) as events:
            record = await live.submit("hold", {"gate": str(gate)})
            await gate.reached()
            worker.send(signal.SIGTERM)
            await eventually(lambda: "Warm shutdown" in worker.logs(), what="the worker stops")
            gate.open()
            await eventually(lambda: worker.status == "exited", what="the worker has stopped")
            kinds = ["task-received", "task-started", "task-succeeded"]
            await eventually(lambda: events.kinds_of(record.job_id) == kinds, what="all is told")


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_the_lifespan_is_entered_before_the_first_job_once_a_process_and_left_at_shutdown(
    own: Starter, pool: Pool, store: EmbeddedStoreContainer, tmp_path: Path, gate: Gate
) -> None:
    witness = tmp_path / "witness"
    settings = settings_for(store, f"lifespan-{pool}")
    worker = own.worker(TOOLS, pool, settings, env={tools.WITNESS_VARIABLE: str(witness)})
    assert lines(witness) == []

    async with live_server(tools.build, settings) as live:
        held = [await live.submit("hold", {"gate": str(gate)}) for _ in range(2)]
        pids = set(await gate.reached(2))
        gate.open()
        for record in held:
            await live.end_of(record)
        for _ in range(4):
            await live.run("lifespan_state")
        assert sorted(lines(witness)) == sorted(f"entered {pid}" for pid in pids)

        worker.kill("SIGTERM")
    assert sorted(lines(witness)) == sorted(f"{what} {pid}" for what in ("entered", "left") for pid in pids)
    eventually_sync(lambda: not any(psutil.pid_exists(pid) for pid in pids), what="the worker's processes are gone")


async def test_a_worker_of_a_server_that_exposes_a_job_by_its_name_runs_the_servers_own(
    own: Starter, pool: Pool, store: EmbeddedStoreContainer
) -> None:
    """To look for the job, Celery imports the worker's modules while the server's is being imported."""
    settings = settings_for(store, f"exposing-by-name-{pool}")
    own.worker("tests.support.servers.exposing_by_name:server", pool, settings)
    async with live_server(exposing_by_name.build, settings) as live:
        assert await live.text_of("greet", {"name": "Ada"}) == "Hello, Ada"
