"""Hints of changes, told once for memory and Redis: none is lost, several may be one, and none comes after the drop."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import cast

import anyio
import pytest

from mcp_celery.engine import Change, TaskHints, TaskRef
from tests.support.waiting import eventually, soon
from tests.support.worlds import SNAPSHOT, RedisWorld, World, a_record

pytestmark = pytest.mark.anyio


async def some_tasks(world: World, count: int) -> list[TaskRef]:
    records = [a_record() for _ in range(count)]
    for record in records:
        await world.store.create(record, SNAPSHOT)
    return [record.ref for record in records]


async def tell(world: World, ref: TaskRef, text: str = "news") -> None:
    changed = await world.store.change(ref, Change(to="working", status_message=text))
    assert changed is not None
    assert changed.accepted


async def heard(hints: TaskHints) -> TaskRef:
    return await soon(hints.__anext__())


async def heard_in(world: World, ref: TaskRef) -> TaskRef:
    async with world.bus.subscribe([ref]) as hints:
        return await hints.__anext__()


async def entered(hints: TaskHints) -> None:
    """Take the hints that a bus may give on entry, to look at what was subscribed."""
    with suppress(TimeoutError):
        while True:
            async with asyncio.timeout(0):
                await hints.__anext__()


async def caught_up(world: World, hints: TaskHints, marker: TaskRef) -> list[TaskRef]:
    """Every hint so far, up to the one of a task that is changed now; hints come in the order of the changes."""
    await tell(world, marker)
    said: list[TaskRef] = []
    while (ref := await heard(hints)) != marker:
        said.append(ref)
    return said


async def test_every_change_is_hinted(world: World) -> None:
    ref, marker = await some_tasks(world, 2)
    async with world.bus.subscribe([ref, marker]) as hints:
        await entered(hints)
        for text in ("one", "two", "three"):
            await tell(world, ref, text)
            assert await heard(hints) == ref
        assert world.ledger.change(ref, Change(to="completed")) is not None
        assert await heard(hints) == ref


async def test_a_refused_change_is_not_hinted(world: World) -> None:
    ref, marker = await some_tasks(world, 2)
    async with world.bus.subscribe([ref, marker]) as hints:
        await entered(hints)
        await world.store.change(ref, Change(to="completed"))
        assert await caught_up(world, hints, marker) == [ref]
        await world.store.change(ref, Change(to="failed"))
        await world.store.change(marker, Change(to="working", attempt=9))
        world.ledger.change(ref, Change(to="working"))
        assert await caught_up(world, hints, marker) == []


async def test_many_changes_between_two_looks_are_one_hint(world: World) -> None:
    ref, marker = await some_tasks(world, 2)
    async with world.bus.subscribe([ref, marker]) as hints, world.bus.subscribe([marker]) as other:
        await entered(hints)
        await entered(other)
        for number in range(50):
            await tell(world, ref, str(number))
        # When the other follower has heard of the marker, everything before it has arrived.
        assert await caught_up(world, other, marker) == []
        assert await heard(hints) == ref
        assert await heard(hints) == marker
        assert await caught_up(world, hints, marker) == []


async def test_a_change_between_subscription_and_load_is_hinted(world: World) -> None:
    (ref,) = await some_tasks(world, 1)
    async with world.bus.subscribe([ref]) as hints:
        await tell(world, ref, "between")
        assert await world.store.load(ref) is not None
        assert await heard(hints) == ref


async def test_a_follower_gets_hints_of_its_own_tasks_only(world: World) -> None:
    own, foreign, marker = await some_tasks(world, 3)
    async with world.bus.subscribe([own, marker]) as hints, world.bus.subscribe([foreign]) as others:
        await entered(hints)
        await tell(world, foreign)
        assert await heard(others) == foreign
        assert await caught_up(world, hints, marker) == []


async def test_all_followers_of_a_task_get_its_hints(world: World) -> None:
    (ref,) = await some_tasks(world, 1)
    async with (
        world.bus.subscribe([ref]) as one,
        world.bus.subscribe([ref]) as two,
        world.bus.subscribe([ref, ref]) as three,
    ):
        await tell(world, ref)
        for hints in (one, two, three):
            assert await heard(hints) == ref


async def test_a_dropped_task_is_not_hinted_any_more(world: World) -> None:
    ref, marker = await some_tasks(world, 2)
    async with world.bus.subscribe([ref, marker]) as hints, world.bus.subscribe([ref]) as other:
        await entered(hints)
        await tell(world, ref)
        await hints.drop(ref)  # with a hint that nobody has heard yet
        await tell(world, ref)
        assert await heard(other) == ref
        assert await caught_up(world, hints, marker) == []
        await hints.drop(ref)


async def test_a_task_dropped_by_one_follower_is_still_hinted_to_another(world: World) -> None:
    ref, marker = await some_tasks(world, 2)
    async with world.bus.subscribe([ref, marker]) as one, world.bus.subscribe([ref, marker]) as other:
        await entered(other)
        await one.drop(ref)
        await tell(world, ref)
        assert await heard(other) == ref


async def test_an_unknown_task_and_no_task_at_all_can_be_followed(world: World) -> None:
    (ref,) = await some_tasks(world, 1)
    async with world.bus.subscribe([]) as hints:
        await hints.drop(ref)
    async with world.bus.subscribe([TaskRef(None, "no-such-task")]):
        await tell(world, ref)


async def test_a_follower_that_gives_up_leaves_the_others_alone(world: World) -> None:
    (ref,) = await some_tasks(world, 1)

    async def follow_for_ever() -> None:
        async with world.bus.subscribe([ref]) as hints:
            while True:
                await hints.__anext__()

    async with world.bus.subscribe([ref]) as hints:
        gone = asyncio.create_task(follow_for_ever())
        await tell(world, ref)
        assert await heard(hints) == ref
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await tell(world, ref)
        assert await heard(hints) == ref


class TestInRedisOnly:
    """One connection a process, and a channel is subscribed while somebody follows its task."""

    async def test_subscriptions_are_counted(self, in_redis: RedisWorld) -> None:
        ref, other = await some_tasks(in_redis, 2)
        assert in_redis.followers(ref) == 0
        async with in_redis.bus.subscribe([ref]):
            assert in_redis.followers(ref) == 1
            async with in_redis.bus.subscribe([ref, other]) as hints:
                assert (in_redis.followers(ref), in_redis.followers(other)) == (1, 1)
                await hints.drop(other)
                await eventually(lambda: in_redis.followers(other) == 0)
                assert in_redis.followers(ref) == 1
            # A later subscription is confirmed after an earlier unsubscription would have been.
            async with in_redis.bus.subscribe([other]):
                assert in_redis.followers(ref) == 1
        await eventually(lambda: in_redis.followers(ref) == in_redis.followers(other) == 0)

    async def test_a_task_can_be_followed_again_at_once(self, in_redis: RedisWorld) -> None:
        (ref,) = await some_tasks(in_redis, 1)
        for number in range(20):
            async with in_redis.bus.subscribe([ref]) as hints:
                assert in_redis.followers(ref) == 1
                await tell(in_redis, ref, str(number))
                assert await heard(hints) == ref

    async def test_a_task_without_events_can_be_followed_again_at_once(self, in_redis: RedisWorld) -> None:
        (ref,) = await some_tasks(in_redis, 1)
        for _ in range(3):
            async with in_redis.bus.subscribe([ref]):
                assert in_redis.followers(ref) == 1

    async def test_followers_that_come_and_go_at_once_disturb_no_one(self, in_redis: RedisWorld) -> None:
        refs = await some_tasks(in_redis, 5)

        async def follow(number: int) -> None:
            ref = refs[number % 5]
            async with in_redis.bus.subscribe([ref]) as hints:
                await tell(in_redis, ref, str(number))
                assert await heard(hints) == ref

        await soon(asyncio.gather(*(follow(number) for number in range(100))))
        await eventually(lambda: not any(in_redis.followers(ref) for ref in refs))

    async def test_a_request_that_is_cancelled_leaves_no_subscription(self, in_redis: RedisWorld) -> None:
        # The SDK cancels by anyio's scopes, under which every await that could clean up is cancelled as well.
        (ref,) = await some_tasks(in_redis, 1)
        with anyio.CancelScope() as scope:
            async with in_redis.bus.subscribe([ref]) as hints:
                assert in_redis.followers(ref) == 1
                scope.cancel()
                while True:
                    await hints.__anext__()
        await eventually(lambda: in_redis.followers(ref) == 0)

    async def test_a_request_that_is_cancelled_while_it_subscribes_holds_up_no_other(
        self, in_redis: RedisWorld
    ) -> None:
        (first, *refs) = await some_tasks(in_redis, 30)
        async with in_redis.bus.subscribe([first]):
            for ref in refs:
                one = asyncio.create_task(in_redis.bus.subscribe([ref]).__aenter__())
                await asyncio.sleep(0)
                two = asyncio.create_task(heard_in(in_redis, ref))
                one.cancel()
                await tell(in_redis, ref)
                assert await soon(two) == ref
                await asyncio.gather(one, return_exceptions=True)

    async def test_nothing_is_kept_of_a_task_that_nobody_follows_any_more(self, in_redis: RedisWorld) -> None:
        bus, commands = in_redis.bus, in_redis.bus._commands  # pyright: ignore[reportPrivateUsage]
        (kept, *refs) = await some_tasks(in_redis, 4)
        name = in_redis.keys.channel(kept.scope, kept.task_id)
        async with bus.subscribe([kept]) as hints:
            for ref in refs * 2:
                async with bus.subscribe([ref]):
                    pass
            await eventually(lambda: not any(in_redis.followers(ref) for ref in refs))
            await tell(in_redis, kept)
            assert await heard(hints) == kept  # what came before has been read
            held = [*vars(bus).values(), *vars(commands).values()]
            names = {one for some in held if isinstance(some, set | dict) for one in cast("Iterable[object]", some)}
            assert names == {name}

    @pytest.mark.slow
    @pytest.mark.shows("C12")
    async def test_ten_thousand_followed_tasks_leave_nothing_behind(self, in_redis: RedisWorld) -> None:
        async def follow(number: int) -> None:
            async with in_redis.bus.subscribe([TaskRef("client-a", f"task-{number}")]):
                pass

        for batch in range(0, 10_000, 500):
            await soon(asyncio.gather(*(follow(number) for number in range(batch, batch + 500))))
        channels = f"{in_redis.keys.all_records}*"
        await eventually(lambda: not in_redis.client.pubsub_channels(channels), what="the last subscription ends")

    async def test_an_event_says_the_new_revision(self, in_redis: RedisWorld) -> None:
        (ref,) = await some_tasks(in_redis, 1)
        with in_redis.client.pubsub(ignore_subscribe_messages=True) as heard_raw:
            heard_raw.subscribe(in_redis.keys.channel(ref.scope, ref.task_id))
            heard_raw.get_message(timeout=5)
            await tell(in_redis, ref)
            assert heard_raw.get_message(timeout=5)["data"] == b"2"  # pyright: ignore[reportOptionalSubscript]

    async def test_a_foreign_message_on_a_channel_is_a_hint_at_most(self, in_redis: RedisWorld) -> None:
        """Who may publish in Redis can have a task looked at. It tells nobody anything, and stops no hint."""
        mine, other = await some_tasks(in_redis, 2)
        async with in_redis.bus.subscribe([mine]) as hints:
            channel = in_redis.keys.channel(mine.scope, mine.task_id)
            for garbage in (b"", b"-1", b"\xff\x00", b"9" * 5_000, b'{"status":"completed"}', b"x" * 1_000_000):
                in_redis.client.publish(channel, garbage)
                in_redis.client.publish(in_redis.keys.channel(other.scope, other.task_id), garbage)
            await tell(in_redis, mine)
            assert await heard(hints) == mine
        stored = await in_redis.store.load(mine)
        assert stored is not None
        assert stored.record.status == "working"
