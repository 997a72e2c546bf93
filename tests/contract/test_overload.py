"""A busy process over a healthy store: nothing is taken for an outage, and an outage still is one.

Times here are those of the store, or of the event loop; none says how fast anything has to be.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final
from urllib.parse import unquote, urlsplit

import pytest

from mcp_celery.engine import Change, TaskEngine, TaskRef
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.testing import MemoryTaskQueue
from tests.support.own_store import OwnStore
from tests.support.waiting import eventually, soon
from tests.support.worlds import SNAPSHOT, RedisWorld, a_record, a_submission, engine_of

pytestmark = pytest.mark.anyio

TIMEOUT_SECONDS: Final = 0.4
CALLS: Final = 200


class Delay:
    """Passes on what clients send over TCP to a Redis on a Unix socket, and its answers after a while, or never.

    Attributes:
        seconds: How much later an answer arrives.
        mute: Connections by their number, counted from 0, on which no answer arrives.
    """

    def __init__(self, store_url: str, seconds: float = 0.0) -> None:
        self._path = unquote(urlsplit(store_url).path)
        self.seconds = seconds
        self.mute: set[int] = set()
        self.connections = 0
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[str]:
        """Serve; gives the URL."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        finally:
            server.close()
            for serving in tuple(self._serving):
                serving.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        serving = asyncio.create_task(self._serve(number, reader, writer))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_unix_connection(self._path)
        try:
            await asyncio.gather(self._pass_on(reader, to_redis), self._answer(number, from_redis, writer))
        finally:
            to_redis.close()
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def _answer(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                await asyncio.sleep(self.seconds)
                if number not in self.mute:
                    writer.write(data)
        writer.close()


@asynccontextmanager
async def world_at(url: str, *, max_connections: int = 2) -> AsyncGenerator[RedisWorld]:
    world = RedisWorld(url, max_connections=max_connections, timeout_seconds=TIMEOUT_SECONDS)
    try:
        yield world
    finally:
        await world.aclose()


def engine_over(world: RedisWorld) -> TaskEngine:
    return engine_of(world, MemoryTaskQueue())


class Ticks:
    """The time in which this process ran: as much as it had to wait for a processor counts for nothing."""

    STEP_SECONDS: Final = 0.01

    def __init__(self) -> None:
        self.seconds = 0.0

    async def __aenter__(self) -> Ticks:
        self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ticking.cancel()
        await asyncio.gather(self._ticking, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self.STEP_SECONDS)
            self.seconds += self.STEP_SECONDS


class TestBusyStore:
    async def test_calls_that_wait_longer_than_the_timeout_are_no_outage(self, own_store: OwnStore) -> None:
        """Each call takes a moment, one at a time, and all of them together several time-outs."""
        delay = Delay(own_store.url, seconds=0.01)
        async with delay.listening() as url, world_at(url, max_connections=1) as world:
            record = a_record()
            await world.store.create(record, SNAPSHOT)
            found = await soon(asyncio.gather(*(world.store.load(record.ref) for _ in range(CALLS))))
            assert None not in found
            await world.store.delete(record.ref)

    async def test_subscriptions_that_wait_longer_than_the_timeout_are_no_outage(self, own_store: OwnStore) -> None:
        delay = Delay(own_store.url, seconds=0.05)
        async with delay.listening() as url, world_at(url) as world, AsyncExitStack() as subscriptions:
            refs = [a_record().ref for _ in range(50)]
            await soon(asyncio.gather(*(subscriptions.enter_async_context(world.bus.subscribe([ref])) for ref in refs)))

    async def test_a_large_answer_that_arrives_in_pieces_is_waited_for(self, own_store: OwnStore) -> None:
        delay = Delay(own_store.url)
        async with delay.listening() as url, world_at(url) as world:
            record = a_record(ttl_ms=60_000)
            await world.store.create(record, SNAPSHOT)
            await asyncio.to_thread(world.put_result, record.job_id, "SUCCESS", "x" * 4_000_000)
            delay.seconds = 0.02  # for each piece of 64 KB
            found = await soon(world.store.load(record.ref))
            assert found is not None
            assert found.result is not None
            assert len(str(found.result.value)) == 4_000_000
            delay.seconds = 0.0
            await world.store.delete(record.ref)

    async def test_a_connection_that_is_lost_silently_fails_no_call_while_the_store_answers_others(
        self, own_store: OwnStore
    ) -> None:
        delay = Delay(own_store.url)
        async with delay.listening() as url, world_at(url, max_connections=2) as world:
            record = a_record()
            await world.store.create(record, SNAPSHOT)
            delay.mute = {0}
            unlucky = asyncio.create_task(world.store.load(record.ref))
            await asyncio.sleep(0)
            while not unlucky.done():
                assert await soon(world.store.load(record.ref)) is not None
            assert await unlucky is not None
            await world.store.delete(record.ref)


class TestBusyProcess:
    @pytest.mark.parametrize("turns", [0, 1, 3, 6])
    async def test_an_event_loop_that_is_blocked_is_no_outage(self, own_store: OwnStore, turns: int) -> None:
        """Wherever in making a connection, or in a call, it is blocked."""
        loop = asyncio.get_running_loop()
        async with world_at(own_store.url, max_connections=8) as world:
            record = a_record()
            calls = [asyncio.create_task(world.store.create(record, SNAPSHOT))]
            calls += [asyncio.create_task(ignored(world.store.load(record.ref))) for _ in range(20)]
            listening = asyncio.create_task(subscribed(world, record.ref))
            for _ in range(turns):
                await asyncio.sleep(0)
            loop.call_soon(time.sleep, 3 * TIMEOUT_SECONDS)
            await soon(asyncio.gather(*calls, listening))
            await world.store.delete(record.ref)

    @pytest.mark.slow
    async def test_an_event_loop_that_is_slow_at_each_turn_is_no_outage(self, own_store: OwnStore) -> None:
        """A call takes several turns, which take longer together than the store may be silent."""
        loop, may_end = asyncio.get_running_loop(), asyncio.Event()

        def work() -> None:
            time.sleep(TIMEOUT_SECONDS / 3)
            if not may_end.is_set():
                loop.call_soon(work)

        async with world_at(own_store.url, max_connections=4) as world:
            record = a_record()
            loop.call_soon(work)
            try:
                await soon(world.store.create(record, SNAPSHOT))
                await soon(
                    asyncio.gather(
                        *(ignored(world.store.load(record.ref)) for _ in range(8)), subscribed(world, record.ref)
                    )
                )
            finally:
                may_end.set()
            await world.store.delete(record.ref)


async def ignored(call: Awaitable[object]) -> None:
    await call


async def subscribed(world: RedisWorld, ref: TaskRef) -> None:
    async with world.bus.subscribe([ref]):
        pass


class TestSilentStore:
    async def test_calls_that_wait_fail_with_those_that_were_sent(
        self, own_store: OwnStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with world_at(own_store.url) as world:
            record = a_record()
            await world.store.create(record, SNAPSHOT)
            await asyncio.gather(*(world.store.load(record.ref) for _ in range(4)))
            own_store.stop_answering()
            async with Ticks() as ticks:
                answers = await soon(
                    asyncio.gather(*(world.store.load(record.ref) for _ in range(CALLS)), return_exceptions=True)
                )
            assert {type(answer) for answer in answers} == {StoreUnavailableError}
            assert ticks.seconds < 2 * TIMEOUT_SECONDS  # one after another they would take CALLS / 2 time-outs
            assert len(caplog.messages) < 10
            own_store.answer_again()
            await eventually(lambda: answers_again(world.store.load(record.ref)))
            await world.store.delete(record.ref)

    @pytest.mark.slow
    async def test_creations_fail_with_the_calls_that_were_sent_and_leave_nothing(self, own_store: OwnStore) -> None:
        async with world_at(own_store.url) as world:
            engine = engine_over(world)
            kept = await engine.submit(a_submission())
            own_store.stop_answering()
            async with Ticks() as ticks:
                answers = await soon(
                    asyncio.gather(*(engine.submit(a_submission()) for _ in range(50)), return_exceptions=True)
                )
            assert {type(answer) for answer in answers} == {StoreUnavailableError}
            assert ticks.seconds < 3 * TIMEOUT_SECONDS
            own_store.answer_again()
            await eventually(lambda: answers_again(world.store.load(kept.ref)))
            await eventually(lambda: len(records(world)) == 1, what="the records are taken back")
            await engine.aclose(patience_seconds=0)
            await world.store.delete(kept.ref)

    async def test_a_command_that_the_store_does_not_take_is_given_up(self, own_store: OwnStore) -> None:
        """More of it than the buffers of the kernel hold."""
        async with world_at(own_store.url) as world:
            record = a_record()
            await world.store.create(record, SNAPSHOT)
            own_store.stop_answering()
            with pytest.raises(StoreUnavailableError):
                await soon(world.store.change(record.ref, Change(to="working", status_message="x" * 8_000_000)))
            await soon(world.store.aclose())
            own_store.answer_again()

    async def test_the_bus_does_not_wait_for_a_silent_store(self, own_store: OwnStore) -> None:
        async with world_at(own_store.url) as world:
            await subscribed(world, a_record().ref)
            own_store.stop_answering()
            async with Ticks() as ticks:
                refs = [a_record().ref for _ in range(50)]
                answers = await soon(asyncio.gather(*(subscribed(world, ref) for ref in refs), return_exceptions=True))
            assert {type(answer) for answer in answers} == {StoreUnavailableError}
            assert ticks.seconds < 2 * TIMEOUT_SECONDS


def records(world: RedisWorld) -> list[bytes]:
    """The keys of records, without what stands beside them: snapshots, and marks of tasks that were taken back."""
    return [key for key in world.keys_left() if b":task:" in key and not key.endswith((b":snapshot", b":deleted"))]


async def answers_again(call: Awaitable[object]) -> bool:
    with suppress(StoreUnavailableError):
        await call
        return True
    return False
