"""Which deliveries of a job run its body: not those cancelled, revoked, repeated, outdated or unknown."""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from mcp_celery import Settings, TaskServer
from mcp_celery.engine import JSONObject, RpcError, TaskRecord
from mcp_celery.engine.outcome import FAILURE_REASONS
from mcp_celery.errors import INTERNAL_ERROR
from mcp_celery.logs import with_short_ids
from tests.integration.conftest import TOOLS, Starter, lines, settings_for, texts_of
from tests.support.live import ANYONE, EventLog, Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, WorkerNode
from tests.support.servers import flaky, tools
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

prefork_only = pytest.mark.parametrize("pool", ["prefork"], indirect=True)


@pytest.fixture
async def busy(live: LiveServer, gate: Gate) -> AsyncGenerator[Gate]:
    """Both slots of the worker are taken until the gate is opened."""
    held = [await live.submit("hold", {"gate": str(gate)}) for _ in range(2)]
    await gate.reached(2)
    yield gate
    gate.open()
    for record in held:
        await live.end_of(record)


async def refused(worker: WorkerNode, record: TaskRecord) -> None:
    """Wait until the worker has met a delivery that must not run."""
    await eventually(lambda: f"job {with_short_ids(record.job_id)} does not run" in worker.process.logs_since_mark())


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_a_received_job_is_claimed_by_its_worker(live: LiveServer, worker: WorkerNode, gate: Gate) -> None:
    record = await live.submit("hold", {"gate": str(gate)})
    await gate.reached()
    claimed = await live.now(record)
    assert claimed.claim is not None
    assert claimed.claim.worker.startswith(f"{worker.hostname()}/")
    assert claimed.started_at_ms is not None
    assert record.created_at_ms <= claimed.claim.at_ms <= claimed.started_at_ms


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_a_repeated_delivery_does_not_run_the_body_again(
    live: LiveServer, worker: WorkerNode, tmp_path: Path
) -> None:
    submission = live.submission("touch", {"path": str(tmp_path / "ran")})
    record = await live.engine.submit(submission)
    await live.publish_again(record, submission)
    await refused(worker, record)
    assert (await live.end_of(record)).record.status == "completed"
    assert len(lines(tmp_path / "ran")) == 1


async def test_a_delivery_that_comes_while_the_first_one_runs_changes_nothing(
    live: LiveServer, worker: WorkerNode, gate: Gate
) -> None:
    submission = live.submission("hold", {"gate": str(gate)})
    record = await live.engine.submit(submission)
    await gate.reached()
    await live.publish_again(record, submission)
    await refused(worker, record)
    assert (await live.now(record)).status == "working"
    gate.open()
    view = await live.end_of(record)
    assert view.record.status == "completed"
    assert view.result is not None
    assert view.result["content"][0]["text"] == "passed"
    assert len(gate.arrived()) == 1


async def test_a_message_for_an_earlier_attempt_does_not_run(
    live: LiveServer, worker: WorkerNode, busy: Gate, tmp_path: Path
) -> None:
    record = await live.submit("touch", {"path": str(tmp_path / "ran")})
    with live.redis() as client:
        client.hset(live.keys.record(None, record.task_id), "attempt", 2)
    busy.open()
    await refused(worker, record)
    assert (await live.now(record)).status == "working"
    assert lines(tmp_path / "ran") == []


async def test_a_message_that_names_another_component_does_not_run(
    live: LiveServer, worker: WorkerNode, busy: Gate, tmp_path: Path
) -> None:
    """Who can write to the broker cannot have a caller's open task run as another tool's."""
    record = await live.submit("touch", {"path": str(tmp_path / "ran")})
    forged = replace(record, component="touch_hourly")
    with live.redis() as client:
        client.delete(f"mcp.{live.tasks.namespace}")  # the task's own message
    kwargs = {"key": forged.key, "attempt": 1, "leg": 1}
    queue = f"mcp.{live.tasks.namespace}"
    live.app.send_task(live.job_name("touch_hourly"), task_id=forged.job_id, kwargs=kwargs, queue=queue)
    busy.open()
    await refused(worker, forged)
    assert (await live.now(record)).status == "working"
    assert lines(tmp_path / "ran") == []


async def test_a_message_without_its_record_does_not_run(
    live: LiveServer, worker: WorkerNode, busy: Gate, tmp_path: Path
) -> None:
    record = await live.submit("touch", {"path": str(tmp_path / "ran")})
    with live.redis() as client:
        client.delete(live.keys.record(None, record.task_id), live.keys.snapshot(None, record.task_id))
    busy.open()
    await refused(worker, record)
    assert "MCP_CELERY_REDIS_URL" in worker.process.logs_since_mark()
    assert lines(tmp_path / "ran") == []
    with live.redis() as client:
        assert not client.exists(live.keys.record(None, record.task_id))


@pytest.mark.smoke
async def test_a_component_that_the_worker_does_not_know_fails(live: LiveServer) -> None:
    record = (await live.run("removed_meanwhile")).record
    assert record.status == "failed"
    assert record.error == RpcError(INTERNAL_ERROR, FAILURE_REASONS["NotRegistered"])
    assert record.status_message == FAILURE_REASONS["NotRegistered"]


async def test_a_job_of_another_server_that_strays_into_the_queue_fails_there(
    live: LiveServer, worker: WorkerNode, settings: Settings
) -> None:
    def build(**options: Any) -> TaskServer:
        return TaskServer("stray", **options)

    values = {"namespace": f"stray-{settings.namespace}", "queue": live.tasks.queue_name}
    async with live_server(build, settings.model_copy(update=values)) as stray:
        record = await stray.submit("add", {"a": 1, "b": 2})

        async def settled() -> TaskRecord | None:
            found = (await stray.engine.get(ANYONE, record.task_id)).record
            return None if found.is_open else found

        failed = await eventually(settled, what="the server has read what Celery stored of its job")
    assert failed is not None
    assert failed.status == "failed"
    assert failed.error == RpcError(INTERNAL_ERROR, FAILURE_REASONS["NotRegistered"])
    assert f"rejected job '{record.job_name or stray.job_name('add')}'" in worker.process.logs_since_mark()


async def test_a_forged_name_ends_no_task_of_another_server(
    live: LiveServer, worker: WorkerNode, settings: Settings
) -> None:
    def build(**options: Any) -> TaskServer:
        return TaskServer("other", **options)

    values = {"namespace": f"other-{settings.namespace}", "queue": f"nobody-{settings.namespace}"}
    async with live_server(build, settings.model_copy(update=values)) as other:
        record = await other.submit("add", {"a": 1, "b": 2})
        for name in (other.job_name("add"), other.job_name("no_such_tool"), f"mcp.{'x' * 1_000}.tool.add"):
            message: dict[str, Any] = {
                "kwargs": {"key": record.key, "attempt": 1},
                "retries": 9,
                "queue": live.tasks.queue_name,
            }
            live.app.send_task(name, task_id=f"forged-{len(name)}", ignore_result=True, **message)
        assert await live.text_of("add", {"a": 1, "b": 2}) == "3"
        await eventually(lambda: worker.process.logs_since_mark().count("this worker does not serve") == 3)
        assert (await other.now(record)).status == "working"
        with other.redis() as client:
            client.delete(values["queue"])


def malformed(queue: str, good: JSONObject) -> list[bytes]:
    """Items of a Redis list that are no messages, and messages that are no jobs of ours.

    Args:
        queue: Where they go.
        good: A message that is one.
    """

    def altered(without: str = "", **changes: Any) -> JSONObject:
        headers = {**good["headers"], "id": "malformed", **changes.pop("headers", {})}
        properties = {**good["properties"], "delivery_tag": str(uuid.uuid4()), **changes.pop("properties", {})}
        message = {**good, "headers": headers, "properties": properties, **changes}
        return {name: value for name, value in message.items() if name != without}

    def body(value: object) -> str:
        return base64.b64encode(json.dumps(value).encode()).decode()

    def sent_with(kwargs: object) -> list[Any]:
        options: dict[str, Any] = {}
        return [[], kwargs, options]

    arguments: list[Any] = [{}, {"key": "no key", "attempt": 1}, {"key": 5, "attempt": 1}, [], None, {"attempt": 1}]
    attempts: list[Any] = ["x", None, [], 1e400]
    arguments += [{"key": "anon:gone:tool:add", "attempt": attempt} for attempt in attempts]
    arguments += [{"key": "anon:\ud800:tool:add", "attempt": 1}]
    messages: list[object] = [
        [], {}, 5, "text", None, {"properties": 5}, {"properties": {}}, {"properties": {"delivery_tag": "t"}},
        altered("properties"), altered("headers"), altered("body"), altered(body=5),
        altered(properties={"delivery_tag": None}), altered(properties={"delivery_tag": []}),
        altered(properties={"delivery_info": None}), altered(properties={"body_encoding": "rot13"}),
        altered(headers={"task": [1]}), altered(headers={"task": None}), altered(headers={"task": "mcp.x.tool.y"}),
        altered(headers={"task": "unknown"}, body=body("no list")), altered(headers={"retries": "many"}),
        altered(headers={"eta": "soon"}), altered(headers={"expires": 7}), altered(**{"content-type": "x/y"}),
        altered(body="%%%"), altered(body=base64.b64encode(b"{").decode()), altered(body=body([1])),
        altered(body=body({"args": 1})), *(altered(body=body(sent_with(one))) for one in arguments),
    ]  # fmt: skip
    without_id = altered()
    del without_id["headers"]["id"]
    return [
        b"\xff\xfe",
        b"",
        b"garbage",
        b"[" * 100_000,
        *(json.dumps(one).encode() for one in (*messages, without_id)),
    ]


@pytest.mark.each_pool
async def test_items_that_are_no_messages_end_no_worker(live: LiveServer, worker: WorkerNode) -> None:
    queue, elsewhere = live.tasks.queue_name, f"samples-{uuid.uuid4().hex}"
    key = "anon:sample:tool:add"
    live.app.send_task(live.job_name("add"), kwargs={"key": key, "attempt": 1}, queue=elsewhere)
    with live.redis() as client:
        good = json.loads(cast("str", client.rpop(elsewhere)))
        good["properties"]["delivery_info"]["routing_key"] = queue
        client.lpush(queue, *malformed(queue, good))
    assert await live.text_of("add", {"a": 1, "b": 2}) == "3"
    said = worker.process.logs_since_mark()
    assert "dropped an item that is no message of Celery's from a queue" in said
    assert "rejected a message that cannot be read" in said
    assert re.search("could not claim job .*: the arguments of its message name no task", said)
    assert "does not run: the arguments of its message name no task" in said
    assert "Unrecoverable error" not in said
    assert "Signal handler" not in said
    assert "Restarting" not in said


@pytest.mark.shows("L26")
async def test_a_job_cancelled_in_the_queue_never_runs(
    live: LiveServer, worker: WorkerNode, busy: Gate, tmp_path: Path
) -> None:
    record = await live.submit("touch", {"path": str(tmp_path / "ran")})
    assert (await live.engine.cancel(ANYONE, record.task_id)).status == "cancelled"
    after = await live.submit("touch", {"path": str(tmp_path / "after")})
    busy.open()
    await live.end_of(after)
    await eventually(
        lambda: with_short_ids(record.job_id) in worker.process.logs_since_mark(), what="the worker has met the job"
    )
    assert (await live.now(record)).status == "cancelled"
    assert lines(tmp_path / "ran") == []


@pytest.mark.shows("L26")
async def test_a_job_cancelled_while_no_worker_is_there_never_runs(
    own: Starter, pool: Pool, store: EmbeddedStoreContainer, tmp_path: Path
) -> None:
    """Celery's own revokes live in the memory of the workers that hear them."""
    settings = settings_for(store, f"cancelled-{pool}")
    async with live_server(tools.build, settings) as live:
        record = await live.submit("touch", {"path": str(tmp_path / "ran")})
        await live.engine.cancel(ANYONE, record.task_id)
        worker = own.worker(TOOLS, pool, settings, concurrency=1)
        assert await live.text_of("add", {"a": 1, "b": 1}) == "2"
        await eventually(lambda: f"job {with_short_ids(record.job_id)} does not run" in worker.logs())
        assert (await live.now(record)).status == "cancelled"
    assert lines(tmp_path / "ran") == []


@pytest.mark.smoke
@prefork_only
@pytest.mark.parametrize("tool", ["hold_limited", "hold_sync_limited"])
async def test_a_job_over_its_time_limit_is_ended_and_fails(live: LiveServer, gate: Gate, tool: str) -> None:
    record = (await live.run(tool, {"gate": str(gate)}, config=tools.LIMITED)).record
    assert record.status == "failed"
    assert record.error == RpcError(INTERNAL_ERROR, FAILURE_REASONS["TimeLimitExceeded"])
    [pid] = gate.arrived()
    await eventually(lambda: not psutil.pid_exists(pid), what="the child has ended")


@prefork_only
async def test_a_job_over_its_soft_time_limit_may_clean_up_and_fails(live: LiveServer, gate: Gate) -> None:
    record = (await live.run("hold_softly_limited", {"gate": str(gate)}, config=tools.SOFTLY_LIMITED)).record
    assert record.status == "failed"
    assert record.error == RpcError(INTERNAL_ERROR, FAILURE_REASONS["SoftTimeLimitExceeded"])
    assert gate.cancelled(), "the tool's own clean-up has run"
    [pid] = gate.arrived()
    assert psutil.pid_exists(pid)


@pytest.mark.smoke
@prefork_only
async def test_a_job_whose_process_is_killed_fails(live: LiveServer, gate: Gate) -> None:
    record = await live.submit("hold", {"gate": str(gate)})
    [pid] = await gate.reached()
    psutil.Process(pid).kill()
    ended = (await live.end_of(record)).record
    assert ended.status == "failed"
    assert ended.error == RpcError(INTERNAL_ERROR, FAILURE_REASONS["WorkerLostError"])
    assert await live.text_of("add", {"a": 1, "b": 1}) == "2"
    assert len(gate.arrived()) == 1


@pytest.mark.each_pool
async def test_a_job_that_celery_retries_keeps_working_and_shows_no_argument(
    own: Starter, pool: Pool, store: EmbeddedStoreContainer, events: EventLog, tmp_path: Path
) -> None:
    settings = settings_for(store, f"flaky-{pool}")
    worker = own.worker("tests.support.servers.flaky:server", pool, settings)
    arguments = {"path": str(tmp_path / "tries"), "secret": "sesame-4711"}
    async with live_server(flaky.build, settings) as live:
        record = await live.submit("second_time_lucky", arguments)
        waiting = await live.becomes(record, lambda now: now.status_message is not None)
        assert waiting.status == "working"
        assert "retry 1" in (waiting.status_message or "")
        view = await live.end_of(record)
        await eventually(lambda: "task-succeeded" in events.kinds_of(record.job_id))
    assert view.record.status == "completed"
    assert view.result is not None
    assert view.result["content"][0]["text"] == "lucky"
    assert lines(tmp_path / "tries") == ["tried", "tried"]
    assert events.kinds_of(record.job_id).count("task-received") == 2
    assert "sesame-4711" not in texts_of(events.all()) + worker.logs()


async def test_two_servers_on_one_broker_do_not_see_each_others_jobs(
    live: LiveServer, settings: Settings, gates: Callable[[], Gate]
) -> None:
    other_settings = settings.model_copy(update={"namespace": f"other-{settings.namespace}"})
    async with live_server(tools.build, other_settings) as other:
        theirs = await other.submit("add", {"a": 1, "b": 1})
        assert await live.text_of("add", {"a": 2, "b": 2}) == "4"
        assert (await other.now(theirs)).claim is None
        with live.redis() as client:
            assert client.llen(other.tasks.queue_name) == 1
        with pytest.raises(Exception, match="Task not found"):
            await live.engine.get(ANYONE, theirs.task_id)
