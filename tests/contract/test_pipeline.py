"""Scripts over a shared connection: whose answer is whose, what waits for what, and what is sent again."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from typing import Any, Final

import hiredis
import pytest
import redis
from redis.credentials import StreamingCredentialProvider

from mcp_celery.engine import Change
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.store import connect
from mcp_celery.store.pipeline import LARGE_BYTES, SharedConnection
from tests.contract.test_overload import Delay, world_at
from tests.support.leaks import no_eternal_keys
from tests.support.own_store import OwnStore
from tests.support.proxy import Proxy
from tests.support.waiting import eventually, soon
from tests.support.worlds import SNAPSHOT, RedisWorld, a_record

pytestmark = pytest.mark.anyio

CALLS: Final = 500


def of_scripts(own_store: OwnStore) -> list[str]:
    """The connections whose last command was a script."""
    with redis.Redis.from_url(own_store.url, decode_responses=True) as client:
        found: Any = client.client_list()
        return [
            one["id"] for one in found if one["cmd"] in {"evalsha", "eval", "hmget", "hgetall", "get", "zrevrangebylex"}
        ]


class TestOneConnection:
    async def test_calls_share_one_connection_and_each_gets_its_own_answer(
        self, own_store: OwnStore, own_world: RedisWorld
    ) -> None:
        # In no list, for the calls that look at a list come while so many commands are on their way.
        tasks = [replace(a_record(), listed=False) for _ in range(CALLS)]
        await soon(asyncio.gather(*(own_world.store.create(task, SNAPSHOT) for task in tasks)))
        found = await soon(asyncio.gather(*(own_world.store.load(task.ref) for task in tasks)))
        assert [one.record for one in found if one is not None] == tasks
        assert len(of_scripts(own_store)) == 1

    async def test_the_answers_of_calls_that_were_given_up_are_no_other_calls(self, own_world: RedisWorld) -> None:
        tasks = [a_record() for _ in range(40)]
        await asyncio.gather(*(own_world.store.create(task, SNAPSHOT) for task in tasks))
        calls = [asyncio.create_task(own_world.store.load(task.ref)) for task in tasks]
        for turns, call in enumerate(calls[::2]):
            if turns % 5 == 0:
                await asyncio.sleep(0)
            call.cancel()
        answers = await soon(asyncio.gather(*calls, return_exceptions=True))
        for task, answer in zip(tasks, answers, strict=True):
            if not isinstance(answer, asyncio.CancelledError):
                assert not isinstance(answer, BaseException)
                assert answer is not None
                assert answer.record == task

    async def test_each_script_is_loaded_once_into_a_store_without_scripts(self, own_world: RedisWorld) -> None:
        task = a_record()
        await own_world.store.create(task, SNAPSHOT)
        client: Any = own_world.client
        client.script_flush()
        client.config_resetstat()
        found = await soon(asyncio.gather(*(own_world.store.present([task.ref]) for _ in range(CALLS))))
        assert found == [[task.ref]] * CALLS
        assert client.info("commandstats")["cmdstat_script|load"]["calls"] == 1

    async def test_a_refused_call_fails_alone(self, own_world: RedisWorld) -> None:
        task = a_record()
        await own_world.store.create(task, SNAPSHOT)
        broken = own_world.store.on_index("ZADD", own_world.keys.due, "no number", "x")
        answers = await asyncio.gather(broken, own_world.store.load(task.ref), return_exceptions=True)
        assert isinstance(answers[0], Exception)
        assert getattr(answers[1], "record", None) == task

    async def test_a_notification_is_no_answer(self, own_world: RedisWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        received = SharedConnection.data_received

        def with_notification(self: SharedConnection, data: bytes) -> None:
            received(self, b">2\r\n$5\r\nmoved\r\n$4\r\nsoon\r\n" + data)

        task = a_record()
        await own_world.store.create(task, SNAPSHOT)
        monkeypatch.setattr(SharedConnection, "data_received", with_notification)
        found = await soon(own_world.store.load(task.ref))
        assert found is not None
        assert found.record == task


class TestLargeAnswers:
    async def test_small_answers_do_not_wait_behind_large_ones(self, own_store: OwnStore) -> None:
        delay = Delay(own_store.url)
        async with delay.listening() as url, world_at(url) as world:
            large, small = a_record(ttl_ms=60_000), a_record(ttl_ms=60_000)
            for record in (large, small):
                await world.store.create(record, SNAPSHOT)
            await asyncio.to_thread(world.put_result, large.job_id, "SUCCESS", "x" * 40 * LARGE_BYTES)
            delay.seconds = 0.05  # for each piece of 64 KB
            slow = asyncio.create_task(world.store.load(large.ref))
            await eventually(lambda: world.store.client.pipeline is not None and world.store.client.pipeline.is_busy)
            assert await soon(world.store.load(small.ref)) is not None
            assert not slow.done()
            delay.seconds = 0.0
            assert await soon(slow) is not None
            for record in (large, small):
                await world.store.delete(record.ref)


class TestLostAnswers:
    async def test_a_call_that_must_not_be_repeated_is_sent_once(
        self, own_world: RedisWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await own_world.store.count_failed_lookups("a caller", 1, window_ms=60_000)  # the script is loaded
        received, answers = SharedConnection.data_received, list[object]()

        def lose(self: SharedConnection, data: bytes) -> None:
            reader = hiredis.Reader()
            reader.feed(data)
            answers.append(reader.gets())
            self.abort()

        monkeypatch.setattr(SharedConnection, "data_received", lose)
        with pytest.raises(StoreUnavailableError):
            await soon(own_world.store.count_failed_lookups("a caller", 1, window_ms=60_000))
        monkeypatch.setattr(SharedConnection, "data_received", received)
        assert len(answers) == 1
        counted = await own_world.store.count_failed_lookups("a caller", 1, window_ms=60_000)
        assert counted.number == 3

    async def test_all_calls_that_waited_on_a_reset_connection_are_made_again(self, store_url: str) -> None:
        prefix = f"test-{uuid.uuid4().hex}"
        with Proxy.before(store_url) as proxy, no_eternal_keys(store_url, [prefix]):
            world = RedisWorld(proxy.redis_url, prefix=prefix)
            try:
                tasks = [a_record(ttl_ms=20_000) for _ in range(20)]
                await soon(asyncio.gather(*(world.store.create(task, SNAPSHOT) for task in tasks)))
                proxy.lose_next_answer()
                changes = (world.store.change(task.ref, Change(to="cancelled")) for task in tasks)
                changed = await soon(asyncio.gather(*changes))
                assert [one is not None and one.record.revision for one in changed] == [2] * len(tasks)
                await asyncio.gather(*(world.store.delete(task.ref) for task in tasks))
            finally:
                await world.aclose()


class TestClient:
    async def test_redis_py_authenticates_the_connections_of_a_streaming_provider_again(self) -> None:
        class Streaming(StreamingCredentialProvider):
            def get_credentials(self) -> tuple[str, str]:
                return "user", "password"

            def on_next(self, callback: Any) -> None: ...

            def on_error(self, callback: Any) -> None: ...

            def is_streaming(self) -> bool:
                return True

        for credentials, is_shared in ((None, True), (Streaming(), False)):
            client = connect("redis://127.0.0.1:1", max_connections=1, timeout_seconds=1, credentials=credentials)
            assert (client.pipeline is not None) is is_shared
            await client.aclose()

    async def test_a_closed_client_opens_no_connection(self, own_store: OwnStore) -> None:
        world = RedisWorld(own_store.url)
        record = a_record(ttl_ms=20_000)
        await world.store.create(record, SNAPSHOT)
        await world.aclose()
        with pytest.raises(StoreUnavailableError):
            await world.store.load(record.ref)
        await eventually(lambda: not of_scripts(own_store), what="its connections are closed")
