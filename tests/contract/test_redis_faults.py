"""What a real Redis does to us: lost connections, a killed server, a server that does not answer, a busy pool."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import hiredis
import kombu
import pytest
import redis
from celery import Celery
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from mcp_celery.common.redis_translation import celery_url
from mcp_celery.engine import Change, Claim, Start, TaskEngine, TaskRecord
from mcp_celery.errors import LIMIT_EXCEEDED, StoreFullError, StoreUnavailableError
from mcp_celery.store.pipeline import SharedConnection
from mcp_celery.store.replies import opened
from mcp_celery.testing import MemoryTaskQueue
from tests.support.own_store import OwnStore
from tests.support.waiting import eventually, soon
from tests.support.worlds import ALICE, LIMITS, SNAPSHOT, TIMEOUT_SECONDS, RedisWorld, a_record, a_submission, engine_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def hasty(own_store: OwnStore, own_world: RedisWorld) -> AsyncGenerator[RedisWorld]:
    """The same records, for whom a store that does not answer soon is gone."""
    world = RedisWorld(own_store.url, prefix=own_world.prefix, timeout_seconds=0.2)
    yield world
    await world.aclose()


def engine_over(world: RedisWorld) -> TaskEngine:
    return engine_of(world, MemoryTaskQueue())


async def answers(world: RedisWorld, record: TaskRecord) -> bool:
    try:
        found = await world.store.load(record.ref)
    except StoreUnavailableError:
        return False
    assert found is not None
    assert found.record.task_id == record.task_id
    return True


class TestLostConnections:
    async def test_a_follower_whose_connection_was_killed_still_learns_of_the_end(
        self, own_store: OwnStore, own_world: RedisWorld
    ) -> None:
        engine = engine_over(own_world)
        task = await engine.submit(a_submission())
        async with engine.watch(ALICE, [task.task_id]) as watch:
            assert (await soon(watch.__anext__())).record.status == "working"
            assert own_store.cut_pubsub() == 1
            await engine.cancel(ALICE, task.task_id)
            assert (await soon(watch.__anext__())).record.status == "cancelled"

    @pytest.mark.shows("C11")
    async def test_a_follower_subscribes_again_and_gets_later_hints(
        self, own_store: OwnStore, own_world: RedisWorld
    ) -> None:
        engine = engine_over(own_world)
        task = await engine.submit(a_submission())
        async with engine.watch(ALICE, [task.task_id]) as watch:
            await soon(watch.__anext__())
            for number in range(3):
                assert own_store.cut_pubsub() == 1
                await eventually(lambda: own_world.followers(task.ref) == 1)
                await own_world.store.change(task.ref, Change(to="working", status_message=str(number)))
                assert (await soon(watch.__anext__())).record.status_message == str(number)

    async def test_followers_that_come_and_go_while_connections_break_all_learn_of_the_end(
        self, own_store: OwnStore, own_world: RedisWorld
    ) -> None:
        engine = engine_over(own_world)

        async def follow(task: TaskRecord) -> None:
            assert (await engine.wait(ALICE, task.task_id)).record.status == "cancelled"

        async def cut(enough: asyncio.Event) -> None:
            while not enough.is_set():
                await asyncio.to_thread(own_store.cut_pubsub)
                await asyncio.sleep(0.002)

        for _ in range(10):
            tasks = [await engine.submit(a_submission()) for _ in range(40)]
            enough = asyncio.Event()
            cutting = asyncio.create_task(cut(enough))
            followers = [asyncio.create_task(follow(task)) for task in tasks]
            for task in tasks:
                await engine.cancel(ALICE, task.task_id)
                await asyncio.sleep(0)
            await soon(asyncio.gather(*followers), seconds=TIMEOUT_SECONDS)
            enough.set()
            await cutting


class TestLostAnswers:
    """Redis did what it was told, and the connection broke before its answer came; it is told again."""

    async def test_a_start_is_granted_to_the_delivery_that_asked(
        self, own_world: RedisWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = a_record()
        await own_world.store.create(task, SNAPSHOT)
        await own_world.store.start(a_record().ref, Start(attempt=1, retries=0, at_ms=1))  # the script is loaded
        lost = lose_the_next_answer(monkeypatch)
        assert await own_world.store.start(task.ref, Start(attempt=1, retries=0, at_ms=1)) == SNAPSHOT
        assert [opened(reply).own[:3] for reply in lost] == [[SNAPSHOT.to_json().encode(), b"1", []]]
        assert await own_world.store.start(task.ref, Start(attempt=1, retries=0, at_ms=1)) is None

    async def test_a_change_is_made_once(self, own_world: RedisWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        task = a_record()
        await own_world.store.create(task, SNAPSHOT)
        await own_world.store.change(a_record().ref, Change(to="completed"))
        lost = lose_the_next_answer(monkeypatch)
        changed = await own_world.store.change(task.ref, Change(to="cancelled"))
        assert len(lost) == 1
        assert changed is not None
        assert (changed.record.status, changed.record.revision) == ("cancelled", 2)

    async def test_all_connections_of_before_are_replaced(
        self, own_store: OwnStore, own_world: RedisWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An operator ends a user's connections one after the other: a repeated call must not meet the next."""
        tasks = [a_record() for _ in range(4)]
        await asyncio.gather(*(own_world.store.create(task, SNAPSHOT) for task in tasks))
        await asyncio.gather(*(own_world.store.snapshot(task.ref) for task in tasks))
        before = calling(own_store)
        assert len(before) > 2
        lose_the_next_answer(monkeypatch)
        await own_world.store.load(tasks[0].ref)
        await asyncio.gather(*(own_world.store.snapshot(task.ref) for task in tasks))
        await eventually(lambda: not before & calling(own_store), what="none of them is left")


def calling(own_store: OwnStore) -> set[str]:
    """The connections that have called a script, or read a record."""
    with redis.Redis.from_url(own_store.url, decode_responses=True) as client:
        return {one["id"] for one in client.client_list() if one["cmd"] in {"evalsha", "eval", "hmget", "hgetall"}}


def lose_the_next_answer(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Break the next connection on which an answer comes; returns where that answer will be."""
    lost: list[object] = []
    received = SharedConnection.data_received

    def break_once(self: SharedConnection, data: bytes) -> None:
        if lost:
            received(self, data)
            return
        reader = hiredis.Reader()
        reader.feed(data)
        lost.append(reader.gets())
        self.abort()

    monkeypatch.setattr(SharedConnection, "data_received", break_once)
    return lost


class TestKilledServer:
    @pytest.mark.shows("C11")
    async def test_records_and_followers_survive_a_killed_server(
        self, own_store: OwnStore, own_world: RedisWorld
    ) -> None:
        engine = engine_over(own_world)
        task = await engine.submit(a_submission())
        async with engine.watch(ALICE, [task.task_id]) as watch:
            await soon(watch.__anext__())
            own_store.kill()
            with pytest.raises(StoreUnavailableError):
                await engine.get(ALICE, task.task_id)
            with pytest.raises(StoreUnavailableError):
                own_world.ledger.change(task.ref, Change(to="completed"))
            own_store.start_again()
            await eventually(lambda: answers(own_world, task))
            assert (await engine.get(ALICE, task.task_id)).record == task
            changed = own_world.ledger.change(task.ref, Change(to="failed", status_message="after the restart"))
            assert changed is not None
            assert changed.accepted
            assert (await soon(watch.__anext__())).record.status_message == "after the restart"

    async def test_connections_pooled_before_a_restart_fail_no_request(
        self, own_store: OwnStore, own_world: RedisWorld
    ) -> None:
        task = a_record()
        await own_world.store.create(task, SNAPSHOT)
        await asyncio.gather(*(own_world.store.load(task.ref) for _ in range(8)))
        assert own_world.ledger.claim(task.ref, attempt=1, claim=Claim("celery@host", 1))
        own_store.kill()
        own_store.start_again()
        found = await asyncio.gather(*(own_world.store.load(task.ref) for _ in range(8)))
        assert None not in found
        assert own_world.ledger.claim(task.ref, attempt=1, claim=Claim("celery@host", 1))

    async def test_a_server_that_has_forgotten_the_scripts_is_given_them_again(self, own_world: RedisWorld) -> None:
        task = a_record()
        await own_world.store.create(task, SNAPSHOT)
        assert await own_world.store.load(task.ref) is not None
        own_world.client.script_flush()
        assert await own_world.store.load(task.ref) is not None
        own_world.client.script_flush()
        assert own_world.ledger.change(task.ref, Change(to="completed")) is not None


class TestSilentServer:
    async def test_every_call_fails_in_time_instead_of_hanging(
        self, own_store: OwnStore, own_world: RedisWorld, hasty: RedisWorld
    ) -> None:
        task = a_record()
        await own_world.store.create(task, SNAPSHOT)
        assert await answers(hasty, task)
        own_store.stop_answering()
        queue = MemoryTaskQueue()
        engine = TaskEngine(
            store=hasty.store,
            queue=queue,
            bus=hasty.bus,
            results=None,
            limits=LIMITS,
            answer_version=LATEST_HANDSHAKE_VERSION,
        )
        for request in (
            engine.submit(a_submission()),
            engine.get(ALICE, task.task_id),
            engine.cancel(ALICE, task.task_id),
            engine.wait(ALICE, task.task_id),
        ):
            with pytest.raises(StoreUnavailableError):
                await soon(request)
        with pytest.raises(StoreUnavailableError):
            await soon(asyncio.to_thread(hasty.ledger.change, task.ref, Change(to="completed")))
        assert queue.published == []

    async def test_answers_that_come_too_late_are_never_taken_for_others(
        self, own_store: OwnStore, own_world: RedisWorld, hasty: RedisWorld
    ) -> None:
        tasks = [a_record() for _ in range(40)]
        for task in tasks:
            await own_world.store.create(task, SNAPSHOT)
        own_store.stop_answering()
        late = await asyncio.gather(*(hasty.store.load(task.ref) for task in tasks), return_exceptions=True)
        assert {type(one) for one in late} == {StoreUnavailableError}
        own_store.answer_again()
        await eventually(lambda: answers(hasty, tasks[0]))
        assert all(await asyncio.gather(*(answers(own_world, task) for task in tasks)))
        for task in tasks:
            await eventually(lambda task=task: answers(hasty, task))

    async def test_a_caller_with_a_longer_timeout_waits_for_a_paused_server(
        self, own_store: OwnStore, own_world: RedisWorld, hasty: RedisWorld
    ) -> None:
        task = a_record()
        await own_world.store.create(task, SNAPSHOT)
        own_world.client.client_pause(1_000)
        with pytest.raises(StoreUnavailableError):
            await soon(hasty.store.load(task.ref))
        assert await answers(own_world, task)
        await eventually(lambda: answers(hasty, task))

    async def test_a_connection_that_is_taken_and_never_answered_is_given_up_for_a_new_one(
        self, own_store: OwnStore, tmp_path: Path
    ) -> None:
        silent, address = tmp_path / "silent", tmp_path / "address"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(silent))
            listener.listen()
            address.symlink_to(silent)
            world = RedisWorld(f"unix://{address}", timeout_seconds=0.3)
            try:
                record = a_record()
                with pytest.raises(StoreUnavailableError):
                    await soon(world.bus.subscribe([record.ref]).__aenter__())
                address.unlink()
                address.symlink_to(urlsplit(unquote(own_store.url)).path)

                async def subscribed() -> bool:
                    with suppress(StoreUnavailableError):
                        async with world.bus.subscribe([record.ref]):
                            return True
                    return False

                assert await eventually(subscribed)
            finally:
                await world.aclose()


class TestBusyPool:
    async def test_requests_wait_for_a_connection_instead_of_failing(self, own_store: OwnStore) -> None:
        world = RedisWorld(own_store.url, max_connections=2)
        try:
            task = a_record()
            await world.store.create(task, SNAPSHOT)
            found = await soon(asyncio.gather(*(world.store.load(task.ref) for _ in range(200))))
            assert {one.record for one in found if one is not None} == {task}
            assert None not in found
            # The two, and the client that asks.
            assert len(cast("list[Any]", world.client.client_list())) <= 3
            await world.store.delete(task.ref)
        finally:
            await world.aclose()

    async def test_requests_that_are_given_up_give_their_connections_back(self, own_store: OwnStore) -> None:
        world = RedisWorld(own_store.url, max_connections=2)
        try:
            task = a_record()
            await world.store.create(task, SNAPSHOT)
            for _ in range(20):
                loads = [asyncio.create_task(world.store.load(task.ref)) for _ in range(10)]
                await asyncio.sleep(0)
                for load in loads[::2]:
                    load.cancel()
                for answer in await asyncio.gather(*loads, return_exceptions=True):
                    if not isinstance(answer, asyncio.CancelledError):
                        assert not isinstance(answer, BaseException)
                        assert answer is not None
                        assert answer.record == task
            assert await soon(answers(world, task))
            await world.store.delete(task.ref)
        finally:
            await world.aclose()


def test_celery_reaches_a_socket_whose_path_needs_quoting(own_store: OwnStore) -> None:
    url = celery_url(own_store.url)
    with kombu.Connection(url) as connection, connection.SimpleQueue("jobs") as queue:
        queue.put({"number": 1})
        message = queue.get(timeout=10)
        assert message.payload == {"number": 1}
        message.ack()
    app = Celery(broker=url, backend=url, set_as_current=False)
    app.backend.store_result("job", {"number": 2}, "SUCCESS")
    assert app.backend.get_result("job") == {"number": 2}
    app.backend.client.close()  # pyright: ignore[reportAttributeAccessIssue]
    app.close()


async def test_redis_that_is_full_is_not_reported_as_down(own_world: RedisWorld) -> None:
    client: Any = own_world.client
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreFullError) as refusal:
            await own_world.store.create(a_record(), SNAPSHOT)
    finally:
        client.config_set("maxmemory", 0)
    assert refusal.value.code == LIMIT_EXCEEDED
    assert refusal.value.data == {"limit": "store_memory", "most": 100, "retryAfterMs": 5_000}
