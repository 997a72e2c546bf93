"""Redis Cluster: three shards keep records and push, while another Redis is broker and result backend."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from mcp_celery import Settings
from mcp_celery.engine import BackendOptions, Change, Claim, TaskRef
from mcp_celery.engine.backend import OpenBackend
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.operate.doctor.cluster import check_cluster
from mcp_celery.operate.doctor.store import check_store
from mcp_celery.operate.site import Site
from mcp_celery.server.connections import backend_of
from mcp_celery.store import RedisBackend
from mcp_celery.store.keys import RedisKeys
from tests.integration.conftest import JOB_SECONDS, Starter, cancel_a_running_job, running
from tests.integration.test_redis_urls import tls_options, tls_server
from tests.support.certificates import Authority
from tests.support.clusters import Cluster
from tests.support.live import Gate, host_app
from tests.support.locks import reserve_port
from tests.support.nodes import ValkeyProcess
from tests.support.programs import ROOT
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow
from tests.support.worlds import SNAPSHOT, a_record

pytestmark = pytest.mark.anyio

UNAVAILABLE: Final = -32603
KEPT: Final = 5
NAMESPACES: Final = ("orders", "reports", "sales")
"""Each on another of the three shards."""


def backend(cluster: Cluster, **values: Any) -> RedisBackend:
    made = backend_of(Settings.load(redis_url=cluster.url, store_timeout_ms=5_000, **values))
    assert isinstance(made, RedisBackend)
    return made


@asynccontextmanager
async def opened(cluster: Cluster, namespace: str) -> AsyncGenerator[OpenBackend]:
    found = backend(cluster).open(BackendOptions(namespace=namespace))
    try:
        yield found
    finally:
        await found.aclose()


def services(redis: ValkeyProcess) -> dict[str, str]:
    """What Celery uses beside the cluster."""
    return {"MCP_CELERY_BROKER_URL": redis.url, "MCP_CELERY_RESULT_BACKEND": redis.url}


async def end_of(wire: Wire, task_id: str) -> str:
    return (await soon(follow(wire, task_id), seconds=JOB_SECONDS))[-1]["status"]


@pytest.mark.smoke
async def test_a_namespace_is_on_one_shard_and_follows_its_slot(own: Starter) -> None:
    cluster = own.cluster()
    roots = {name: RedisKeys("mcp_celery", name, is_tagged=True).root for name in NAMESPACES}
    assert {cluster.node_of(root) for root in roots.values()} == {0, 1, 2}
    records = {name: a_record(ttl_ms=600_000) for name in NAMESPACES}
    for name in NAMESPACES:
        async with opened(cluster, name) as kept:
            record = records[name]
            await kept.store.create(record, SNAPSHOT)
            await kept.recovery.beat("celery@one/1", 60_000)
            async with kept.bus.subscribe([record.ref]) as hints:
                assert await soon(hints.__anext__()) == record.ref  # it is subscribed
                before = cluster.node_of(roots[name])
                with cluster.admin(before) as node:
                    channel = RedisKeys("mcp_celery", name, is_tagged=True).channel(record.scope, record.task_id)
                    assert node.execute_command("PUBSUB", "SHARDNUMSUB", channel) == [channel, 1]

                cluster.move(roots[name], (before + 1) % 3)

                moved = await kept.store.change(record.ref, Change(to="completed"))
                assert moved is not None
                assert moved.record.status == "completed"

                async def heard(hints: Any = hints) -> TaskRef:
                    return await hints.__anext__()

                assert await soon(heard()) == record.ref
                assert await asyncio.to_thread(
                    backend(cluster).open_ledger(BackendOptions(namespace=name)).is_kept, record.ref
                )
    for index in range(3):
        with cluster.admin(index) as node:
            assert {key for key in node.keys("*") if not any(key.startswith(root) for root in roots.values())} == set()
            assert [key for key in node.keys("*") if node.pttl(key) == -1] == []
    with host_app(Settings.load()) as app:
        async with Site(Settings.load(redis_url=cluster.url), app).opened() as servers:
            assert [one.namespace for one in servers] == sorted(NAMESPACES)
            findings = await check_store(servers[0], result_key=None)
            assert [one.text for one in findings if one.level == "error"] == []


async def test_a_slot_on_its_way_refuses_calls_before_they_have_changed_anything(own: Starter) -> None:
    """The claims of a worker are a key that the script of a claim does not declare."""
    cluster = own.cluster()
    root = RedisKeys("mcp_celery", "moving", is_tagged=True).root
    ledger = backend(cluster).open_ledger(BackendOptions(namespace="moving"))
    async with opened(cluster, "moving") as kept:
        record = a_record(ttl_ms=600_000)
        await kept.store.create(record, SNAPSHOT)
        here = cluster.node_of(root)
        claim = functools.partial(ledger.claim, record.ref, attempt=1, claim=Claim("celery@one/1", 1))
        with cluster.moving(root, (here + 1) % 3), cluster.admin(here) as node:
            before = {key: node.execute_command("DUMP", key, NEVER_DECODE=True) for key in node.keys("*")}
            with pytest.raises(StoreUnavailableError):
                await asyncio.to_thread(claim)
            after = {key: node.execute_command("DUMP", key, NEVER_DECODE=True) for key in node.keys("*")}
            assert after == before
        assert await asyncio.to_thread(claim)
    ledger.close()


async def test_a_cluster_without_sharded_pubsub_is_used_with_the_other_commands(
    own: Starter, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    lacks = tmp_path / "lacks.conf"
    lacks.write_text("".join(f'rename-command {name} ""\n' for name in ("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE")))
    cluster = own.cluster(options={"include": lacks})
    async with opened(cluster, "old") as kept:
        record = a_record(ttl_ms=600_000)
        await kept.store.create(record, SNAPSHOT)
        async with kept.bus.subscribe([record.ref]) as hints:
            assert await soon(hints.__anext__()) == record.ref
            await kept.store.change(record.ref, Change(to="completed"))
            assert await soon(hints.__anext__()) == record.ref
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


@pytest.mark.smoke
async def test_the_doctor_says_where_a_namespace_is(own: Starter) -> None:
    cluster = own.cluster()
    found = backend_of(Settings.load(redis_url=f"redis+cluster://127.0.0.1:1,{','.join(cluster.addresses)}"))
    assert isinstance(found, RedisBackend)
    unreached, whole, alone = await check_cluster(found, ["reports"])
    assert (unreached.level, unreached.text.startswith("the node 127.0.0.1:1 cannot be asked: ")) == ("warning", True)
    assert (whole.level, whole.text) == ("ok", "the cluster has 3 masters, and all slots are on them")
    port = cluster.ports[cluster.node_of(found.keys_of("reports").root)]
    assert alone.level == "warning"
    assert alone.text.startswith(f"the tasks of 'reports' are on 127.0.0.1:{port}, which has no replica")
    nowhere = backend_of(Settings.load(redis_url="redis+cluster://127.0.0.1:1"))
    assert isinstance(nowhere, RedisBackend)
    assert (await check_cluster(nowhere, []))[-1].text == "no node of the cluster answers"
    unusable = await asyncio.to_thread(nowhere.unusable)
    assert unusable is not None
    assert "no node of the cluster names a master" in unusable.reason
    assert await asyncio.to_thread(found.unusable) is None


async def keeps_and_pushes(backend: RedisBackend) -> None:
    """Check that a task is kept, and that a follower learns of its change."""
    kept = backend.open(BackendOptions(namespace="reports"))
    record = a_record(ttl_ms=600_000)
    try:
        await kept.store.create(record, SNAPSHOT)
        async with kept.bus.subscribe([record.ref]) as hints:
            assert await soon(hints.__anext__()) == record.ref
            await kept.store.change(record.ref, Change(to="completed"))
            assert await soon(hints.__anext__()) == record.ref
        assert await kept.store.load(record.ref) is not None
    finally:
        await kept.aclose()


async def test_a_user_of_the_documentation_may_do_everything_with_a_password_of_a_file(
    own: Starter, tmp_path: Path
) -> None:
    cluster = own.cluster()
    (rights,) = re.findall(r"^user mcp-celery-cluster (.*)$", (ROOT / "docs/redis.md").read_text(), re.MULTILINE)
    for index in range(3):
        with cluster.admin(index) as node:
            node.execute_command("ACL", "SETUSER", "limited", *rights.split())
    url, file = cluster.url.replace("://", "://limited@"), tmp_path / "password"
    file.write_text("PASSWORD")
    settings = Settings.load(redis_url=url, redis_password_file=str(file), key_prefix="app:mcp", store_timeout_ms=5_000)
    found = backend_of(settings)
    assert isinstance(found, RedisBackend)
    assert await asyncio.to_thread(found.unusable) is None
    await keeps_and_pushes(found)
    with host_app(settings) as app:
        async with Site(settings, app).opened() as (server,):
            findings = [*await check_cluster(found, [server.namespace]), *await check_store(server, result_key=None)]
    assert [one.text for one in findings if one.level == "error"] == []
    for index in range(3):
        with cluster.admin(index) as node:
            assert node.acl_log() == []
    file.write_text("outdated")
    unusable = await asyncio.to_thread(found.unusable)
    assert unusable is not None
    assert unusable.is_refusal


async def test_nodes_are_reached_over_tls(own: Starter, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    options = tls_options(authority, reserve_port(), "no", "127.0.0.1")
    tls_server(own, options).teardown()  # it may have been built without TLS
    among_themselves = authority.sign("node")  # nodes show it to each other
    ours = {"tls-client-cert-file": among_themselves.certificate, "tls-client-key-file": among_themselves.key}
    cluster = own.cluster(tls={**options, **ours})
    url = cluster.url.replace("redis+cluster", "rediss+cluster")
    trusting = backend_of(Settings.load(redis_url=f"{url}?ssl_ca_certs={authority.certificate}"))
    assert isinstance(trusting, RedisBackend)
    assert await asyncio.to_thread(trusting.unusable) is None
    await keeps_and_pushes(trusting)
    assert [one.level for one in await check_cluster(trusting, [])] == ["ok"]
    distrusting = backend_of(Settings.load(redis_url=url))
    unusable = await asyncio.to_thread(distrusting.unusable)
    assert unusable is not None
    assert "CERTIFICATE_VERIFY_FAILED" in unusable.reason
    assert "ssl_ca_certs" in unusable.reason


@pytest.mark.slow
async def test_a_server_and_a_worker_run_tasks_on_a_cluster(own: Starter) -> None:
    cluster, redis = own.cluster(), own.valkey()
    async with running(cluster.url, "cluster", "asyncio", **services(redis)) as (deployment, wire):
        task_id = (await wire.create("report_steadily", count=3, pause_ms=150))["taskId"]
        assert await end_of(wire, task_id) == "completed"
        assert (await wire.get(task_id))["status"] == "completed"
        await cancel_a_running_job(wire)
        logs = "\n".join(deployment.logs().values())
        assert "cannot be read" not in logs


@pytest.mark.slow
async def test_a_master_that_is_killed_is_replaced_by_its_replica(own: Starter, gate: Gate) -> None:
    redis = own.valkey()
    async with clustered(own, redis) as (cluster, deployment, wire, root):
        kept = [(await wire.create("add", a=number, b=1))["taskId"] for number in range(KEPT)]
        assert [await end_of(wire, task_id) for task_id in kept] == ["completed"] * KEPT
        held = (await wire.create("report_and_hold", gate=str(gate)))["taskId"]
        follower = asyncio.create_task(follow(wire, held, began := asyncio.Event()))
        await gate.reached()
        await soon(began.wait(), seconds=JOB_SECONDS)
        master = cluster.node_of(root)
        with cluster.admin(master) as node:
            assert node.wait(1, 5_000) == 1

        cluster.nodes[master].kill()

        async def created() -> str | None:
            answer = await wire.call("add", a=1, b=2)
            if "error" in answer.message:
                assert answer.error["code"] == UNAVAILABLE, answer.error
                return None
            return answer.result["taskId"]

        later = await eventually(created, what="a task is created", seconds=JOB_SECONDS)
        assert later is not None

        async def completed() -> bool:
            return (await wire.get(later))["status"] == "completed"

        # A follower may still be refused: the connection for push looks for the new master by itself.
        await eventually(completed, what="the task is completed", seconds=JOB_SECONDS)
        assert [(await wire.get(task_id))["status"] for task_id in kept] == ["completed"] * KEPT
        assert (await wire.get(held))["status"] == "working"
        gate.open()
        assert (await soon(follower, seconds=JOB_SECONDS))[-1]["status"] == "completed"
        assert len(gate.arrived()) == 1, "a live job was taken for lost"
        assert "has died" not in "\n".join(deployment.logs().values())


@asynccontextmanager
async def clustered(own: Starter, redis: ValkeyProcess) -> AsyncGenerator[Any]:
    """A deployment in a namespace whose master has a replica."""
    root = RedisKeys("{cluster}", "any", is_tagged=True).root
    cluster = own.cluster(replica_of=root)
    settings = {**services(redis), "MCP_CELERY_KEY_PREFIX": "{cluster}", "MCP_CELERY_HEARTBEAT_MS": "1000"}
    async with running(cluster.url, "failover", "asyncio", **settings) as (deployment, wire):
        yield cluster, deployment, wire, root
