"""A Redis that is a replica, or that becomes one while it is used: nothing is written there, and nothing is missed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack
from typing import Any, Final

import pytest
import redis

from mcp_celery.engine import Change
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.store import connect, connect_blocking
from mcp_celery.store.client import StoreClient
from mcp_celery.store.masters import BlockingMasterFinder, MasterFinder
from mcp_celery.store.roles import ReplicaError
from tests.support.locks import reserve_port
from tests.support.nodes import ValkeyProcess, short_folder
from tests.support.worlds import SNAPSHOT, TIMEOUT_SECONDS, RedisWorld, a_record

pytestmark = pytest.mark.anyio

NOWHERE: Final = ("127.0.0.1", 1)


@pytest.fixture(scope="module")
def port() -> int:
    return reserve_port()


@pytest.fixture(scope="module")
def node(port: int) -> Generator[ValkeyProcess]:
    with short_folder() as folder, ExitStack() as stack:
        process = ValkeyProcess(folder, options={"port": port})
        stack.callback(process.teardown)
        process.start()
        process.ready()
        yield process


@pytest.fixture
def admin(node: ValkeyProcess) -> Generator[Any]:
    client: Any = redis.Redis.from_url(node.url)
    with client:
        yield client
        client.replicaof("NO", "ONE")
        client.config_set("min-replicas-to-write", 0)


@pytest.fixture
async def world(node: ValkeyProcess, admin: Any) -> AsyncGenerator[RedisWorld]:
    made = RedisWorld(node.url)
    yield made
    admin.replicaof("NO", "ONE")
    await made.aclose()


async def test_a_replica_takes_no_write_and_the_log_says_what_to_set(
    world: RedisWorld, admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    record = a_record()
    await world.store.create(record, SNAPSHOT)
    admin.replicaof(*NOWHERE)
    with pytest.raises(StoreUnavailableError) as error:
        await world.store.change(record.ref, Change(to="completed"))
    assert isinstance(error.value.__cause__, ReplicaError)
    with pytest.raises(StoreUnavailableError):
        world.ledger.change(record.ref, Change(to="completed"))
    assert "must lead to the master" in caplog.text
    admin.replicaof("NO", "ONE")
    assert (await world.store.change(record.ref, Change(to="completed"))) is not None
    assert world.ledger.is_kept(record.ref)


async def test_connections_to_a_former_master_are_replaced_before_they_are_used_again(
    node: ValkeyProcess, admin: Any
) -> None:
    """Else the next call reads from it, and gets what the new master has no more."""
    client = connect(node.url, max_connections=4, timeout_seconds=TIMEOUT_SECONDS)
    redis_py: Any = client.redis
    blocking: Any = connect_blocking(node.url, timeout_seconds=TIMEOUT_SECONDS)
    try:
        some = [await redis_py.connection_pool.get_connection() for _ in range(3)]
        more = [blocking.connection_pool.get_connection() for _ in range(3)]
        for connection in some:
            await redis_py.connection_pool.release(connection)
        for connection in more:
            blocking.connection_pool.release(connection)
        before = {one["id"] for one in admin.client_list()} - {str(admin.client_id())}
        assert len(before) == len(some) + len(more)
        admin.replicaof(*NOWHERE)
        with pytest.raises(ReplicaError):
            await client.call(lambda: redis_py.set("x", "1"))
        with pytest.raises(ReplicaError):
            blocking.set("x", "1")
        for _ in range(3):
            await redis_py.connection_pool.get_connection()
            blocking.connection_pool.get_connection()
        assert not before & {one["id"] for one in admin.client_list()}
    finally:
        await client.aclose()
        blocking.close()


@pytest.mark.parametrize("protocol", [2, 3])
async def test_no_replica_is_used_that_sentinels_take_for_the_master(
    port: int, admin: Any, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    """A Sentinel that is cut off from the others goes on to name the former master."""

    async def named(_: MasterFinder) -> tuple[str, int]:
        return "127.0.0.1", port

    def named_to_threads(_: BlockingMasterFinder) -> tuple[str, int]:
        return "127.0.0.1", port

    monkeypatch.setattr(MasterFinder, "find", named)
    monkeypatch.setattr(BlockingMasterFinder, "find", named_to_threads)
    url = f"sentinel://127.0.0.1:1/main?protocol={protocol}"
    client = connect(url, max_connections=2, timeout_seconds=TIMEOUT_SECONDS)
    redis_py: Any = client.redis
    blocking: Any = connect_blocking(url, timeout_seconds=TIMEOUT_SECONDS)
    try:
        admin.replicaof(*NOWHERE)
        with pytest.raises(ReplicaError, match=f"127.0.0.1:{port}, which was named as the master, is a replica"):
            await client.call(lambda: redis_py.get("x"))
        with pytest.raises(ReplicaError, match="is a replica"):
            blocking.get("x")
        admin.replicaof("NO", "ONE")
        assert await client.call(lambda: redis_py.get("x")) is None
        assert blocking.get("x") is None
    finally:
        await client.aclose()
        blocking.close()


async def test_a_master_with_too_few_replicas_takes_no_write_and_the_log_names_the_option(
    world: RedisWorld, admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    record = a_record()
    await world.store.create(record, SNAPSHOT)
    admin.config_set("min-replicas-to-write", 1)
    with pytest.raises(StoreUnavailableError):
        await world.store.change(record.ref, Change(to="completed"))
    assert "min-replicas-to-write" in caplog.text
    assert await world.store.load(record.ref) is not None


async def test_a_sweep_says_whether_another_server_has_answered(
    world: RedisWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    recovery = world.recovery()
    said: list[bool] = []
    for moves in (0, 1, 1):
        monkeypatch.setattr(StoreClient, "moves", moves)
        sweep = await recovery.sweep("reaper", RecoveryPolicy(heartbeat_ms=1_000, max_redeliveries=1))
        assert sweep is not None
        said.append(sweep.after_failover)
    assert said == [False, True, False]
    await recovery.resign("reaper")
