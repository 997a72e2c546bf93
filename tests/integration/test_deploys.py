"""Rolling deploys: servers and workers of two versions of one server, beside each other and one after the other."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from uuid import uuid4

import pytest
import redis
from mcp.shared.exceptions import MCPError
from pydantic import SecretStr

from mcp_celery import Settings, TaskMeta, TaskServer
from mcp_celery.keys import TaskType
from tests.integration.conftest import Starter, settings_for
from tests.support.brokers import delete_queues
from tests.support.deployment import Deployment, deployed
from tests.support.live import Gate, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, WorkerProcess
from tests.support.servers import deploys
from tests.support.servers.deploys import Version
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

SERVER: Final = "tests.support.servers.deploys"
HOSTED: Final = "tests.support.servers.deploys_hosted"
VERSIONS: Final[tuple[Version, ...]] = ("old", "new")
HEARTBEAT_MS: Final = 500
JSON = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call that a server of one version takes.

    Attributes:
        component: The component.
        arguments: Its arguments; a resource's URI.
        result: What that version gives.
        accepted: What the other version gives, where it takes all of the arguments; None where it does not.
        task_type: The component's kind.
        same: Whether the other version reads arguments in the same way.
    """

    component: str
    arguments: JSON
    result: JSON
    accepted: JSON | None = None
    task_type: TaskType = "tool"
    same: bool = False

    def __str__(self) -> str:
        return f"{self.component}({json.dumps(self.arguments)})"

    @property
    def params(self) -> JSON:
        if self.task_type == "resource":
            return {"uri": self.component}
        return {"name": self.component, "arguments": self.arguments}


def x(number: int, **more: Any) -> JSON:
    return {"x": number, **more}


CALLS: Final[dict[Version, Sequence[Call]]] = {
    "old": (
        Call("added", x(1), x(1), accepted=x(1, y=1)),
        Call("demanded", x(1), x(1)),
        Call("removed", x(1, y=5), x(1, y=5)),
        Call("removed", x(1), x(1, y=1), accepted=x(1)),
        Call("renamed", {"count": 3}, {"count": 3}),
        Call("renamed", {}, {"count": 1}, accepted={"number": 1}),
        Call("retyped", {"x": "seven"}, {"x": "seven"}),
        Call("retyped", {"x": "7"}, {"x": "7"}, accepted=x(7)),
        Call("defaulted", {}, x(1), accepted=x(2)),
        Call("defaulted", x(5), x(5), accepted=x(5)),
        Call("versioned", x(1), x(1), accepted=x(1)),
        Call("gone", x(1), x(1)),
        Call("made_sync", x(1), x(1), same=True),
        Call("documented", x(1), x(1), same=True),
        Call("body", {}, {}, same=True),
        Call("briefing", {"topic": "tides"}, {"topic": "tides"}, {"topic": "tides", "style": "plain"}, "prompt"),
        Call("report://2026", {}, {"year": "2026"}, task_type="resource"),
    ),
    "new": (
        Call("added", x(1, y=5), x(1, y=5)),
        Call("added", x(1), x(1, y=1), accepted=x(1)),
        Call("demanded", x(1, y=2), x(1, y=2)),
        Call("removed", x(1), x(1), accepted=x(1, y=1)),
        Call("renamed", {"number": 3}, {"number": 3}),
        Call("retyped", x(7), x(7)),
        Call("defaulted", {}, x(2), accepted=x(1)),
        Call("versioned", x(1), x(1), accepted=x(1)),
        Call("fresh", x(1), x(1)),
        Call("enabled", x(1), x(1)),
        Call("made_sync", x(1), x(1), same=True),
        Call("documented", x(1), x(1), same=True),
        Call("body", {}, {}, same=True),
        Call("briefing", {"topic": "tides", "style": "dry"}, {"topic": "tides", "style": "dry"}, task_type="prompt"),
        Call("report://2026/07", {}, {"year": "2026", "month": "07"}, task_type="resource"),
    ),
}
"""The calls that each version's server takes."""


@pytest.fixture
def fleet(store: EmbeddedStoreContainer) -> Settings:
    """The settings of both versions."""
    return settings_for(store, f"deploys-{uuid4().hex[:8]}", heartbeat_ms=HEARTBEAT_MS)


def work(own: Starter, version: Version, pool: Pool, fleet: Settings, **options: Any) -> WorkerProcess:
    return own.worker(f"{SERVER}:{version}", pool, fleet, **options)


@asynccontextmanager
async def serving(version: Version, fleet: Settings) -> AsyncGenerator[LiveServer]:
    def build(**options: Any) -> TaskServer:
        return deploys.build(version, **options)

    async with live_server(build, fleet) as live:
        yield live


async def submitted(live: LiveServer, call: Call) -> Any:
    return await live.tasks.submit(call.task_type, call.params, None, TaskMeta())


async def outcome(task: Any) -> JSON | str:
    """What a task comes to: what its component said, or why it failed."""
    try:
        result = await soon(task.result())
    except MCPError as error:
        return error.message
    if hasattr(result, "structured_content"):
        assert not result.is_error, result
        return cast(JSON, result.structured_content)
    (said,) = result.messages if hasattr(result, "messages") else result.contents
    return json.loads(said.content.text if hasattr(said, "content") else said.text)


async def run(live: LiveServer, calls: Sequence[Call]) -> list[JSON | str]:
    tasks = [await submitted(live, call) for call in calls]
    return list(await asyncio.gather(*map(outcome, tasks)))


def names_both_versions(reason: JSON | str) -> bool:
    return (
        isinstance(reason, str)
        and "the server has version " in reason
        and ("that worker has version " in reason or "that worker has no such component" in reason)
        and "no other live worker has the server's version" in reason
    )


@pytest.mark.parametrize("served", VERSIONS)
@pytest.mark.parametrize("worked", VERSIONS)
async def test_no_pair_of_versions_gives_a_wrong_result(
    own: Starter, pool: Pool, fleet: Settings, served: Version, worked: Version
) -> None:
    worker = work(own, worked, pool, fleet)
    async with serving(served, fleet) as live:
        found = await run(live, CALLS[served])
    for call, got in zip(CALLS[served], found, strict=True):
        if served == worked or call.same:
            assert got == {"by": worked, **call.result}, call
        else:
            assert names_both_versions(got), (call, got)
    failed = sum(isinstance(one, str) for one in found)
    # A task has failed a moment before its worker says so.
    await eventually(lambda: worker.logs().count("does not run: The job was not run") == failed)


@pytest.mark.parametrize("served", VERSIONS)
async def test_with_that_setting_another_version_runs_jobs_whose_arguments_it_accepts(
    own: Starter, pool: Pool, fleet: Settings, served: Version
) -> None:
    worked: Version = "new" if served == "old" else "old"
    fleet = fleet.model_copy(update={"component_match": "accepts"})
    work(own, worked, pool, fleet)
    async with serving(served, fleet) as live:
        found = await run(live, CALLS[served])
    for call, got in zip(CALLS[served], found, strict=True):
        expected = call.result if call.same else call.accepted
        if expected is None:
            assert names_both_versions(got), (call, got)
        else:
            assert got == {"by": worked, **expected}, call


@pytest.mark.smoke
@pytest.mark.each_pool
async def test_with_a_worker_of_each_version_all_calls_of_both_servers_are_right(
    own: Starter, pool: Pool, fleet: Settings
) -> None:
    workers = [work(own, version, pool, fleet, concurrency=4) for version in VERSIONS]
    async with serving("old", fleet) as old, serving("new", fleet) as new:
        servers: dict[Version, LiveServer] = {"old": old, "new": new}
        calls: list[tuple[Version, Call]] = [
            (version, call) for version in VERSIONS for call in CALLS[version] for _ in range(3)
        ]
        tasks = [await submitted(servers[version], call) for version, call in calls]
        found = await asyncio.gather(*map(outcome, tasks))
    for (version, call), got in zip(calls, found, strict=True):
        if call.same:
            assert got in [{"by": one, **call.result} for one in VERSIONS]
        else:
            assert got == {"by": version, **call.result}, call
    assert sum(worker.logs().count("handed back job") for worker in workers) > 0


ADDED: Final = Call("added", x(1, y=5), x(1, y=5))
"""A call of the new server, of which an old worker would drop an argument."""


@pytest.fixture
def gate(tmp_path: Path) -> Generator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()


def holding(gate: Gate) -> Call:
    return Call("hold", {"gate": str(gate)}, {}, same=True)


async def held_by(gate: Gate, version: Version) -> None:
    """Wait until a worker of a version runs a job that waits at the gate."""
    await eventually(lambda: version in gate.notes("arrived"), what=f"the {version} worker is busy")


async def advertised(live: LiveServer, component: str, *, seconds: float) -> None:
    """Let it look for some time as if a live worker had the server's version of a tool."""
    fingerprint = (await live.tasks.host.components.find("tool", component)).fingerprint
    assert fingerprint is not None
    with live.redis() as client:
        key = live.keys.components("celery@elsewhere/1")
        client.hset(key, fingerprint, f"tool:{component}")
        client.pexpire(key, round(seconds * 1000))
        client.zadd(live.keys.workers, {"celery@elsewhere/1": (time.time() + seconds) * 1000})


async def test_tasks_in_flight_are_run_by_the_workers_of_their_version(
    own: Starter, pool: Pool, fleet: Settings, gate: Gate
) -> None:
    work(own, "old", pool, fleet, concurrency=1)
    async with serving("old", fleet) as old:
        busy = await submitted(old, holding(gate))
        await held_by(gate, "old")
        waiting = [await submitted(old, call) for call in CALLS["old"]]
        work(own, "new", pool, fleet, concurrency=1)
        async with serving("new", fleet) as new:
            fresh = [await submitted(new, call) for call in CALLS["new"]]
            for call, task in zip(CALLS["new"], fresh, strict=True):
                got = await outcome(task)
                assert got == {"by": "new", **call.result} or call.same, (call, got)
            gate.open()
            for call, task in zip(CALLS["old"], waiting, strict=True):
                got = await outcome(task)
                assert got == {"by": "old", **call.result} or call.same, (call, got)
        assert await outcome(busy) == {"by": "old"}


async def test_a_worker_that_shuts_down_is_not_waited_for(
    own: Starter, pool: Pool, fleet: Settings, gate: Gate
) -> None:
    leaving = work(own, "old", pool, fleet, concurrency=2)
    async with serving("old", fleet) as old:
        busy = await submitted(old, holding(gate))
        await held_by(gate, "old")
        leaving.send(signal.SIGTERM)
        await eventually(lambda: "Warm shutdown" in leaving.logs())
        # The line is printed before the worker lets go of its queue: it would keep a message until its job has ended.
        with old.redis() as client:
            await eventually(lambda: client.keys(old.keys.components("*")) == [])
        work(own, "new", pool, fleet)

        async def is_refused() -> bool:
            return names_both_versions(await outcome(await submitted(old, CALLS["old"][0])))

        await eventually(is_refused, what="the leaving worker takes no job")
        assert leaving.status == "running"
        gate.open()
        assert await outcome(busy) == {"by": "old"}


async def test_a_worker_whose_consumer_was_cancelled_is_not_waited_for(
    own: Starter, pool: Pool, fleet: Settings
) -> None:
    work(own, "old", pool, fleet)
    drained = work(own, "new", pool, fleet)
    async with serving("new", fleet) as live:
        control = cast("Any", live.app.control)
        control.cancel_consumer(live.tasks.queue_name, destination=[drained.hostname], reply=True)
        with live.redis() as client:
            advertise = 1  # the old one
            await eventually(lambda: len(client.keys(live.keys.components("*"))) == advertise)
        assert names_both_versions(await outcome(await submitted(live, ADDED)))
        assert drained.status == "running"


async def test_a_worker_that_has_lost_its_broker_is_waited_for(own: Starter, pool: Pool, fleet: Settings) -> None:
    broker = own.valkey("broker")
    fleet = fleet.model_copy(update={"broker_url": broker.url})
    worker = work(own, "new", pool, fleet)
    async with serving("new", fleet) as live:
        with live.redis() as client:

            def beat() -> float:
                return max((at for _, at in cast("Any", client.zrange(live.keys.workers, 0, -1, withscores=True))))

            def advertises() -> bool:
                return client.keys(live.keys.components("*")) != []

            await eventually(advertises)
            broker.kill()
            await eventually(lambda: "Connection to broker lost" in worker.logs())
            lost_at = beat()
            await eventually(lambda: beat() > lost_at + 3 * HEARTBEAT_MS, what="three more heartbeats")
            assert advertises()


async def test_jobs_wait_for_the_killed_last_worker_of_their_version_until_its_lease_ends(
    own: Starter, pool: Pool, fleet: Settings
) -> None:
    old, dying = work(own, "old", pool, fleet), work(own, "new", pool, fleet)
    async with serving("new", fleet) as live:
        assert await outcome(await submitted(live, ADDED)) == {"by": "new", **ADDED.result}
        dying.kill_all()
        assert names_both_versions(await outcome(await submitted(live, ADDED)))
    assert "handed back job" in old.logs()


async def test_a_job_outlives_the_worker_that_handed_it_back(own: Starter, pool: Pool, fleet: Settings) -> None:
    async with serving("new", fleet) as live:
        await advertised(live, "added", seconds=60)
        old = work(own, "old", pool, fleet)
        task = await submitted(live, ADDED)
        await eventually(lambda: "handed back job" in old.logs())
        old.kill_all()
        new = work(own, "new", pool, fleet)
        assert await outcome(task) == {"by": "new", **ADDED.result}
        assert new.logs().count("added[") > 0


async def test_a_job_is_handed_back_no_more_often_than_the_setting_allows(
    own: Starter, pool: Pool, fleet: Settings
) -> None:
    fleet = fleet.model_copy(update={"max_handbacks": 2})
    async with serving("new", fleet) as live:
        await advertised(live, "added", seconds=60)
        await advertised(live, "fresh", seconds=60)
        old = work(own, "old", pool, fleet)
        for call in (ADDED, Call("fresh", x(1), x(1))):
            reason = await outcome(await submitted(live, call))
            assert isinstance(reason, str)
            assert "the server has version" in reason
            assert "it was handed back for 60 s or MCP_CELERY_MAX_HANDBACKS times" in reason
        assert old.logs().count("handed back job") == 4


async def test_each_queue_has_workers_of_its_own(own: Starter, pool: Pool, fleet: Settings) -> None:
    """The one that hands the job back knows neither the tool nor its queue."""
    elsewhere = f"{fleet.namespace}-elsewhere"
    routed = Call("routed", x(1), x(1))
    env = {deploys.QUEUE_VARIABLE: elsewhere}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(deploys.QUEUE_VARIABLE, elsewhere)
        async with serving("new", fleet) as live:
            old = work(own, "old", pool, fleet, env=env, flags=("-Q", elsewhere))
            work(own, "new", pool, fleet, env=env)
            assert names_both_versions(await outcome(await submitted(live, routed))), "its worker has another queue"
            work(own, "new", pool, fleet, env=env, flags=("-Q", elsewhere))
            tasks = [await submitted(live, routed) for _ in range(8)]
            assert [await outcome(task) for task in tasks] == [{"by": "new", **routed.result}] * 8
            assert "handed back job" in old.logs()


async def test_a_store_that_does_not_answer_meanwhile_loses_nothing(own: Starter, pool: Pool, fleet: Settings) -> None:
    records, broker = own.valkey("records"), own.valkey("broker")
    values = {"redis_url": records.url, "broker_url": broker.url, "result_backend": records.url}
    fleet = Settings.load(namespace=fleet.namespace, heartbeat_ms=HEARTBEAT_MS, store_timeout_ms=500, **values)
    calls = (ADDED, Call("fresh", x(1), x(1)))
    async with serving("new", fleet) as live:
        for call in calls:
            await advertised(live, call.component, seconds=600)
        tasks = [await submitted(live, call) for call in calls]
        queue = live.tasks.queue_name
        with redis.Redis.from_url(broker.url) as client:
            messages = cast("list[bytes]", client.lrange(queue, 0, -1))
            client.delete(queue)
            old = work(own, "old", pool, fleet)
            records.send(signal.SIGSTOP)
            try:
                client.rpush(queue, *messages)
                await eventually(lambda: not client.exists(queue), what="the worker has both messages")
                await eventually(lambda: "the task store (MCP_CELERY_REDIS_URL) failed" in old.logs())
            finally:
                records.send(signal.SIGCONT)
        await eventually(lambda: old.logs().count("handed back job") >= 2, what="both are handed back")
        work(own, "new", pool, fleet)
        assert [await outcome(task) for task in tasks] == [{"by": "new", **call.result} for call in calls]


async def test_sealed_values_are_read_by_both_versions(own: Starter, pool: Pool, fleet: Settings) -> None:
    fleet = fleet.model_copy(update={"encryption_keys": SecretStr("k" * 32)})
    work(own, "old", pool, fleet)
    async with serving("new", fleet) as live:
        for call in (ADDED, Call("fresh", x(1), x(1))):
            assert names_both_versions(await outcome(await submitted(live, call)))
        work(own, "new", pool, fleet)
        tasks = [await submitted(live, ADDED) for _ in range(8)]
        assert [await outcome(task) for task in tasks] == [{"by": "new", **ADDED.result}] * 8


async def test_jobs_are_handed_back_over_rabbitmq(own: Starter, pool: Pool, fleet: Settings, rabbitmq_url: str) -> None:
    fleet = fleet.model_copy(update={"broker_url": rabbitmq_url, "result_backend": fleet.redis_url})
    workers = [work(own, version, pool, fleet) for version in VERSIONS]
    try:
        async with serving("old", fleet) as old, serving("new", fleet) as new:
            tasks = [(call, await submitted(new, call)) for call in CALLS["new"] for _ in range(2)]
            for call, task in tasks:
                got = await outcome(task)
                assert got == {"by": "new", **call.result} or call.same, (call, got)
            assert await outcome(await submitted(old, CALLS["old"][0])) == {"by": "old", **CALLS["old"][0].result}
        assert sum(worker.logs().count("handed back job") for worker in workers) > 0
    finally:
        delete_queues(rabbitmq_url, f"mcp.{fleet.namespace}")


async def test_a_call_over_http_says_its_version_too(own: Starter, store: EmbeddedStoreContainer, pool: Pool) -> None:
    namespace = f"deploys-{uuid4().hex[:8]}"
    fleet = settings_for(store, namespace, heartbeat_ms=HEARTBEAT_MS)
    work(own, "old", pool, fleet)
    with deployed(store.url, namespace, spec=f"{SERVER}:new") as deployment:
        async with Wire(deployment.serve()) as wire:
            task = await wire.create("added", **x(1, y=5))
            (failed,) = (await follow(wire, task["taskId"]))[-1:]
    assert failed["status"] == "failed"
    assert names_both_versions(failed["error"]["message"])


async def test_workers_of_an_app_that_is_not_ours_do_the_same(store: EmbeddedStoreContainer) -> None:
    namespace = f"deploys-{uuid4().hex[:8]}"
    fleet = settings_for(store, namespace, heartbeat_ms=HEARTBEAT_MS)
    with ExitStack() as stack:
        workers: list[Deployment] = []
        for version in VERSIONS:
            settings = {"MCP_CELERY_HEARTBEAT_MS": str(HEARTBEAT_MS), deploys.VERSION_VARIABLE: version}
            workers.append(stack.enter_context(deployed(store.url, namespace, settings=settings, app=HOSTED)))
            stack.enter_context(workers[-1].worker("prefork", flags=("--without-gossip",)))
        async with serving("old", fleet) as old, serving("new", fleet) as new:
            servers: dict[Version, LiveServer] = {"old": old, "new": new}
            for version, live in servers.items():
                calls = [call for call in CALLS[version] for _ in range(2)]
                for call, got in zip(calls, await run(live, calls), strict=True):
                    assert got == {"by": version, **call.result} or call.same, (call, got)
        logs = "".join(text for one in workers for text in one.logs().values())
    assert "handed back job" in logs
    assert "Received unregistered task" not in logs
