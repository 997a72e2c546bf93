"""The keys of scripts: all are declared, callers know those of the usual path, and a script asks for the others."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from redis.exceptions import NoPermissionError

from mcp_celery.engine import Change, Claim, EncodedResult, PlaceLimit, Quota, Start, TaskRecord, now_ms
from mcp_celery.engine.places import NoPlaceError
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.store import commands
from mcp_celery.store.named import MOST, NamedKeys
from mcp_celery.store.replies import NextScript, opened
from mcp_celery.store.scripts import SCRIPTS
from mcp_celery.worker.celery.batched_qos import script
from tests.support.declared_keys import REFUSAL, checked
from tests.support.worlds import SNAPSHOT, RedisWorld, a_record, open_tasks, redis_world

pytestmark = pytest.mark.anyio

ONLY_ONE = PlaceLimit("component", "x", 1)
POLICY = RecoveryPolicy(heartbeat_ms=60_000, max_redeliveries=1)


async def started(world: RedisWorld, record: TaskRecord) -> None:
    assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms(), worker="w1"))


async def finished(world: RedisWorld, record: TaskRecord) -> bool:
    result = EncodedResult(f"{world.prefix}:result:{record.job_id}", '["SUCCESS", 1]')
    return await world.store.finish(record.ref, Change(to="completed", attempt=1), result)


def calls(world: RedisWorld) -> int:
    stats = cast(Any, world.client).info("commandstats")
    return sum(stats[name]["calls"] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats)


@pytest.mark.parametrize("command", ["call", "pcall"])
async def test_the_check_refuses_a_key_that_is_not_declared(in_redis: RedisWorld, command: str) -> None:
    key = in_redis.keys.due
    text = checked({"one": f"return redis.{command}('DEL', KEYS[1], ARGV[1])"})["one"]
    assert cast(Any, in_redis.client).eval(text, 2, key, key + "2", key + "2") == 0
    with pytest.raises(NoPermissionError, match=REFUSAL):
        cast(Any, in_redis.client).eval(text, 1, key, key + "2")


async def test_the_check_refuses_a_command_that_it_does_not_know(in_redis: RedisWorld) -> None:
    text = checked({"one": "return redis.call('RENAME', KEYS[1], KEYS[1])"})["one"]
    with pytest.raises(NoPermissionError, match="RENAME"):
        cast(Any, in_redis.client).eval(text, 1, in_redis.keys.due)


@pytest.mark.parametrize("name", ["take", "acknowledge"])
def test_scripts_of_the_worker_s_transport_use_keys_alone(name: str) -> None:
    assert set(re.findall(r"redis\.p?call\('\w+', (\w+)", script(name))) == {"KEYS"}


async def test_each_step_of_a_task_is_one_call(own_world: RedisWorld) -> None:
    """Also of one that counts for its caller. A read is none: the process knows where the result will be."""
    world, record, made = own_world, a_record(), list[int]()
    claim = Claim("w1", now_ms())
    steps: list[Callable[[], Awaitable[object]]] = [
        lambda: world.store.create(record, SNAPSHOT, open_tasks("r", 10, bytes_=100_000)),
        lambda: world.store.load(record.ref),
        lambda: world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms(), worker="w1")),
        lambda: world.store.change(record.ref, Change(to="working", attempt=1, status_message="news")),
        lambda: finished(world, record),
        lambda: world.store.load(record.ref),
    ]
    other = a_record()
    await world.store.create(other, SNAPSHOT)
    assert world.ledger.claim(other.ref, attempt=1, claim=claim)  # the script is loaded
    before = calls(world)
    assert world.ledger.claim(other.ref, attempt=1, claim=claim)
    made.append(calls(world) - before)
    for step in steps:
        world.client.script_flush()
        await world.store.attend(record.ref)  # its own script alone is loaded
        before = calls(world)
        await step()
        made.append(calls(world) - before)
    assert made == [1, 2, 0, 2, 2, 2, 0]  # the first try finds the script missing


async def test_a_process_that_knows_no_keys_ends_a_task_all_the_same(in_redis: RedisWorld, store_url: str) -> None:
    record = a_record()
    await in_redis.store.create(record, SNAPSHOT, open_tasks("r", 1, bytes_=100_000))
    await started(in_redis, record)
    other = RedisWorld(store_url, prefix=in_redis.prefix)
    try:
        assert await finished(other, record)
    finally:
        await other.aclose()
    await in_redis.store.create(a_record(), SNAPSHOT, open_tasks("r", 1))  # its counter is free
    assert not cast(Any, in_redis.client).exists(in_redis.keys.claims("w1"))


async def test_keys_that_are_out_of_date_are_asked_for_again(in_redis: RedisWorld) -> None:
    record = a_record()
    await in_redis.store.create(record, SNAPSHOT, open_tasks("r", 1))
    await started(in_redis, record)
    key = in_redis.keys.record(record.scope, record.task_id)
    in_redis.store.named.learn("end", key, [in_redis.keys.claims("another")])
    assert await finished(in_redis, record)
    await in_redis.store.create(a_record(), SNAPSHOT, open_tasks("r", 1))


async def test_a_script_that_asks_for_keys_has_changed_nothing(in_redis: RedisWorld) -> None:
    record = a_record()
    await in_redis.store.create(record, SNAPSHOT, open_tasks("r", 1))
    await started(in_redis, record)
    key = in_redis.keys.record(record.scope, record.task_id)
    result = EncodedResult(f"{in_redis.prefix}:result:{record.job_id}", "")
    command = commands.finish(in_redis.store.seals, record.ref, Change(to="completed", attempt=1), result)
    client = cast(Any, in_redis.client)
    before = client.hgetall(key)
    reply = client.eval(SCRIPTS["finish"], len(command.keys), *command.keys, *command.argv)
    assert in_redis.keys.claims("w1").encode() in opened(reply).asked_for
    assert client.hgetall(key) == before
    assert await in_redis.store.run(command)


async def test_a_place_whose_process_died_before_it_was_granted_is_granted_by_a_sweep(
    in_redis: RedisWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = a_record(), a_record()
    for record in (first, second):
        await in_redis.store.create(record, SNAPSHOT, Quota("", places=(ONLY_ONE,)))
    await started(in_redis, first)
    with pytest.raises(NoPlaceError):
        await started(in_redis, second)

    async def die(_: NextScript) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as dead:
        dead.setattr(in_redis.store, "_do_next", die)
        with pytest.raises(ConnectionResetError):
            await finished(in_redis, first)
    assert not await in_redis.recovery().overdue()
    found = await in_redis.recovery().sweep("r", POLICY)
    assert found is not None
    assert found.due == [second.key]


async def test_an_owner_list_is_looked_at_after_some_tasks(store_url: str) -> None:
    async with redis_world(store_url) as world:
        brief = a_record(ttl_ms=1)
        await world.store.create(brief, SNAPSHOT)
        for _ in range(31):
            await world.store.create(a_record(), SNAPSHOT)
        index = str(world.keys.index(brief.scope, brief.issuer, None))
        assert cast(Any, world.client).zcard(index) == 31


def test_what_a_process_knows_has_an_end() -> None:
    named = NamedKeys()
    for number in range(2 * MOST + 1):
        named.learn("end", str(number), [str(number)])
    assert named.of("end", str(MOST)) == [str(MOST)]
    assert named.of("end", str(2 * MOST)) == [str(2 * MOST)]
    assert named.of("end", str(MOST - 1)) == ()
    assert named.of("read", str(2 * MOST)) == ()


async def waiting(world: RedisWorld, number: int) -> list[TaskRecord]:
    """Tasks of which the first has the only place, and the others wait for it."""
    now = now_ms()
    first, *others = [replace(a_record(), created_at_ms=now + place) for place in range(number)]
    for record in (first, *others):
        await world.store.create(record, SNAPSHOT, Quota("", places=(ONLY_ONE,)))
    await started(world, first)
    for record in others:
        with pytest.raises(NoPlaceError):
            await started(world, record)
    return [first, *others]


async def test_a_place_is_granted_past_tasks_that_are_gone(in_redis: RedisWorld) -> None:
    first, *gone, last = await waiting(in_redis, 5)
    for record in gone:
        in_redis.client.delete(in_redis.keys.record(record.scope, record.task_id))
    assert await finished(in_redis, first)
    assert await in_redis.recovery().overdue() == [last.key]


async def test_a_sweep_takes_places_from_tasks_that_have_ended(in_redis: RedisWorld) -> None:
    first, second = await waiting(in_redis, 2)
    limit = in_redis.keys.running(ONLY_ONE.kind, ONLY_ONE.whose)
    cast(Any, in_redis.client).hset(in_redis.keys.record(first.scope, first.task_id), "status", "completed")
    assert cast(Any, in_redis.client).zscore(limit, first.key)
    found = await in_redis.recovery().sweep("r", POLICY)
    assert found is not None
    assert found.due == [second.key]
