"""Calls of the store that are made again, as their answer was lost: they change nothing, and get their first answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

import pytest

from mcp_celery.common.rates import Rate
from mcp_celery.engine import (
    Answer,
    Asking,
    Change,
    Claim,
    EncodedResult,
    Extension,
    ForeignWork,
    HandBack,
    Idempotency,
    NextLeg,
    PlaceLimit,
    Question,
    QueueMessage,
    Quota,
    RateLimit,
    Start,
    TaskRecord,
    now_ms,
)
from mcp_celery.engine.places import NoPlaceError
from mcp_celery.engine.recovery.model import PublishedJob, RecoveryPolicy
from mcp_celery.engine.store_mark import StoreMark
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.store import RedisRecovery, commands, questions
from mcp_celery.store.codec import encode_record
from mcp_celery.store.replies import NextScript
from mcp_celery.store.scripts import NAMED, NEVER_REPEATED, SCRIPTS, Command
from tests.support.leaks import no_eternal_keys
from tests.support.proxy import Proxy
from tests.support.waiting import eventually, soon
from tests.support.worlds import ALICE, SNAPSHOT, RedisWorld, World, a_record, open_tasks

pytestmark = pytest.mark.anyio

T = TypeVar("T")
QUESTION: Final = Question("q", "roots/list", {})
POLICY: Final = RecoveryPolicy(heartbeat_ms=10, max_redeliveries=1)
STEADY: Final = RecoveryPolicy(heartbeat_ms=60_000, max_redeliveries=1)
"""The key of a reaper that sweeps by it does not expire while the test looks at all keys."""
FINGERPRINT: Final = "f" * 8
FINISHED: Final = EncodedResult("result", "[]")
ANSWER: Final[dict[str, Answer]] = {QUESTION.key: {"roots": []}}
ONCE: Final = Idempotency("k" * 64, "r" * 64)
ONLY_ONE: Final = PlaceLimit("component", "x", 1)
BY_THE_CLOCK: Final = ("workers", "unread", "attended", "waiting")
"""Indices whose times are those of the last call, however often it is made."""


# What each script needs to do something, and the call of it.


async def created(world: World, record: TaskRecord | None = None) -> TaskRecord:
    record = record or replace(a_record(), fingerprint=FINGERPRINT, idempotent=True)
    await world.store.create(record, SNAPSHOT, open_tasks("r", 10, bytes_=100_000))
    return record


async def asked(world: World) -> TaskRecord:
    record = await created(world)
    assert await world.store.ask(record.ref, QUESTION, asking())
    return record


async def parked(world: World) -> TaskRecord:
    record = await created(world)
    assert await world.store.park(record.ref, [QUESTION], asking(), next_leg(record))
    return record


async def claimed(world: World) -> TaskRecord:
    record = await created(world)
    assert world.ledger.claim(record.ref, attempt=1, claim=Claim("w1", now_ms()))
    return record


def asking() -> Asking:
    now = now_ms()
    return Asking(attempt=1, at_ms=now, extension=Extension(now + 1_000_000, 2_000_000))


def next_leg(record: TaskRecord) -> NextLeg:
    return NextLeg(leg=2, job_id=f"{record.job_id}!2", request_state=None)


class _Sent(Exception):  # noqa: N818 - no error
    """Brings a command out of the code that would send it."""

    def __init__(self, command: Command[Any]) -> None:
        self.command = command


async def sent_by(call: Callable[[RedisRecovery], Awaitable[object]], world: RedisWorld) -> Command[Any]:
    """The command that recovery sends."""
    store: Any = world.store
    recovery = RedisRecovery(store)

    async def run(command: Command[Any]) -> None:
        raise _Sent(command)

    store.run = run
    try:
        await call(recovery)
    except _Sent as sent:
        return sent.command
    finally:
        del store.run
    raise AssertionError("it sends nothing")


async def create(world: RedisWorld) -> Command[Any]:
    record = replace(a_record(component="x" * 200), fingerprint=FINGERPRINT)
    quota = open_tasks("r", 1, bytes_=100_000)
    return commands.create(world.keys, record, encode_record(record), "{}", quota, lambda job_id: job_id)


async def create_foreign(world: RedisWorld) -> Command[Any]:
    record = replace(a_record(), work=ForeignWork())
    return commands.create(world.keys, record, encode_record(record), "{}", None, None)


async def create_once(world: RedisWorld) -> Command[Any]:
    record, quota = a_record(), replace(open_tasks("r", 1, bytes_=100_000), rates=(RateLimit("r", Rate(1, 60_000)),))
    return commands.create(world.keys, record, encode_record(record), "{}", quota, None, ONCE)


async def create_with_message(world: RedisWorld) -> Command[Any]:
    record, queue = a_record(), f"{world.prefix}:queue"
    cast(Any, world.client).lpush(queue, "the job before")
    world.client.expire(queue, 60)  # kombu's queues live for ever
    message = QueueMessage(queue=queue, payload="{}", lanes=(queue,), most=2)
    return commands.create(world.keys, record, encode_record(record), "{}", None, None, ONCE, message)


async def create_what_there_is(world: RedisWorld) -> Command[Any]:
    await world.store.run(await create_once(world))
    return await create_once(world)


async def earlier(world: RedisWorld) -> Command[Any]:
    """Of a request that has died: the first call takes its place, and so does the second."""
    await world.store.run(await create_once(world))
    cast(Any, world.client).hset(world.keys.once(ONCE.name), "publishing", 0)
    return commands.earlier(world.keys, a_record(), ONCE)


async def earlier_of_none(world: RedisWorld) -> Command[Any]:
    return commands.earlier(world.keys, a_record(), ONCE)


async def delete_once(world: RedisWorld) -> Command[Any]:
    record = a_record()
    await world.store.create(record, SNAPSHOT, None, ONCE)
    return commands.delete(world.keys, record.ref)


async def published_once(world: RedisWorld) -> Command[Any]:
    record = a_record()
    await world.store.create(record, SNAPSHOT, None, ONCE)
    return questions.published(world.keys, record.ref, attempt=1)


async def delete(world: RedisWorld) -> Command[Any]:
    return commands.delete(world.keys, (await created(world)).ref)


async def delete_what_has_begun(world: RedisWorld) -> Command[Any]:
    record = await created(world)
    assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms()))
    return commands.delete(world.keys, record.ref)


async def retire(world: RedisWorld) -> Command[Any]:
    return commands.retire(world.keys, (await created(world)).ref, now_ms() + 50_000)


async def keep(world: RedisWorld) -> Command[Any]:
    return commands.keep(world.keys, (await created(world)).ref, Extension(now_ms() + 1_000_000, 2_000_000))


async def attend(world: RedisWorld) -> Command[Any]:
    record = await created(world, replace(a_record(), abandon_after_ms=60_000))
    return commands.attend(world.keys, record.ref)


async def load(world: RedisWorld) -> Command[Any]:
    return commands.load(world.store.seals, (await asked(world)).ref, None)


async def present(world: RedisWorld) -> Command[Any]:
    return commands.present(world.keys, [a_record().ref, (await created(world)).ref])


async def page(world: RedisWorld) -> Command[Any]:
    index = world.keys.index(ALICE.scope, ALICE.issuer, None)
    assert index is not None
    position = (await created(world)).position
    return commands.page(world.store.seals, index, ALICE, [position], [], None)


async def prune(world: RedisWorld) -> Command[Any]:
    index = world.keys.index(ALICE.scope, ALICE.issuer, None)
    assert index is not None
    gone, kept = await created(world), await created(world)
    record = world.keys.record(gone.scope, gone.task_id)
    world.client.delete(record)
    records = [record, world.keys.record(kept.scope, kept.task_id)]
    return Command("prune", [index, *records], [gone.position, kept.position], lambda _: None)


async def transition(world: RedisWorld) -> Command[Any]:
    change = Change(to="working", status_message="news", retries=1, retry_at_ms=now_ms())
    return commands.change(world.store.seals, (await claimed(world)).ref, change)


async def transition_to_an_end(world: RedisWorld) -> Command[Any]:
    return commands.change(world.store.seals, (await asked(world)).ref, Change(to="cancelled"))


async def finish(world: RedisWorld) -> Command[Any]:
    record = await claimed(world)
    result = EncodedResult(f"{world.prefix}:result", "[]")
    return commands.finish(world.store.seals, record.ref, Change(to="completed", attempt=1), result)


async def start(world: RedisWorld) -> Command[Any]:
    record = await asked(world)
    return commands.start(
        world.keys,
        record.ref,
        Start(attempt=1, retries=0, at_ms=now_ms(), delivery="d", worker="w1", key=record.key, fingerprint=FINGERPRINT),
    )


async def start_without_a_place(world: RedisWorld) -> Command[Any]:
    second = await waiting_for_a_place(world)
    started = commands.start(
        world.keys,
        second.ref,
        Start(attempt=1, retries=0, at_ms=now_ms(), delivery="d", worker="w1", key="", fingerprint=None),
    )

    def as_it_is(reply: Any) -> Any:
        return reply

    return replace(started, parse=as_it_is)


async def waiting_for_a_place(world: RedisWorld) -> TaskRecord:
    """The second of two tasks, of which the first has the only place."""
    first, second = a_record(), a_record()
    for record in (first, second):
        await world.store.create(record, SNAPSHOT, Quota("", places=(ONLY_ONE,)))
    assert await world.store.start(first.ref, Start(attempt=1, retries=0, at_ms=now_ms(), worker="w1"))
    return second


async def in_turn(world: RedisWorld, number: int) -> list[TaskRecord]:
    """Tasks of a caller that takes turns. The jobs of the first two go to the broker."""
    await RedisRecovery(world.store).beat("w1", 60_000, slots=1)
    records = [a_record() for _ in range(number)]
    for record in records:
        await world.store.create(record, SNAPSHOT, Quota("r", line="r"))
    return records


async def create_what_waits_for_its_turn(world: RedisWorld) -> Command[Any]:
    await in_turn(world, 2)
    record = a_record()
    return commands.create(world.keys, record, encode_record(record), "{}", Quota("r", line="r"), None, ONCE)


async def create_in_turn(world: RedisWorld) -> Command[Any]:
    await in_turn(world, 1)
    record = a_record()
    return commands.create(world.keys, record, encode_record(record), "{}", Quota("r", line="r"), None)


async def start_in_turn(world: RedisWorld) -> Command[Any]:
    *_, record = await in_turn(world, 3)
    return commands.start(
        world.keys,
        record.ref,
        Start(attempt=1, retries=0, at_ms=now_ms(), delivery="d", worker="w1", key="", fingerprint=None),
    )


async def answer_that_waits_for_its_turn(world: RedisWorld) -> Command[Any]:
    record, *_ = await in_turn(world, 4)
    assert await world.store.park(record.ref, [QUESTION], asking(), next_leg(record))
    return questions.answer(world.store.seals, record.ref, ANSWER, at_ms=now_ms(), start_before_ms=now_ms() + 1_000)


async def beat_that_gives_a_turn(world: RedisWorld) -> Command[Any]:
    await in_turn(world, 4)
    return await sent_by(lambda recovery: recovery.beat("w2", 10_000, slots=1), world)


async def sweep_that_gives_a_turn(world: RedisWorld) -> Command[Any]:
    first, *_ = await in_turn(world, 4)
    cast(Any, world.client).zrem(world.keys.window, first.key)

    def nothing(_: Any) -> None:
        """The second sweep finds due what the first has made so."""

    return replace(await sweep(world), parse=nothing)


async def claim(world: RedisWorld) -> Command[Any]:
    record = await created(world)
    return commands.claim(world.keys, record.ref, attempt=1, retries=0, claim=Claim("w1", now_ms()))


async def ask(world: RedisWorld) -> Command[Any]:
    return questions.ask(world.store.seals, (await created(world)).ref, QUESTION, asking())


async def heard(world: RedisWorld) -> Command[Any]:
    record = await asked(world)
    assert await world.store.answer(record.ref, ANSWER, at_ms=now_ms(), start_before_ms=None)
    return questions.heard(world.store.seals, record.ref, QUESTION.key, attempt=1)


async def park(world: RedisWorld) -> Command[Any]:
    record = await claimed(world)
    return questions.park(world.store.seals, record.ref, [QUESTION], asking(), next_leg(record), lambda job_id: job_id)


async def answer(world: RedisWorld) -> Command[Any]:
    ref = (await parked(world)).ref
    return questions.answer(world.store.seals, ref, ANSWER, at_ms=now_ms(), start_before_ms=now_ms() + 1_000)


async def published(world: RedisWorld) -> Command[Any]:
    record = await parked(world)
    assert await world.store.answer(record.ref, ANSWER, at_ms=now_ms(), start_before_ms=None)
    return questions.published(world.keys, record.ref, attempt=2)


async def beat(world: RedisWorld) -> Command[Any]:
    return await sent_by(lambda recovery: recovery.beat("w1", 10_000, {"f": "c"}, 500), world)


async def bury(world: RedisWorld) -> Command[Any]:
    await RedisRecovery(world.store).beat("w1", 10_000, {"f": "c"}, 500, slots=1)
    return await sent_by(lambda recovery: recovery.bury("w1"), world)


async def bury_the_dead(world: RedisWorld) -> Command[Any]:
    await RedisRecovery(world.store).beat("w1", 0, {"f": "c"}, 500, slots=1)
    return await sent_by(lambda recovery: recovery.bury("w1", died=True), world)


async def bury_the_living(world: RedisWorld) -> Command[Any]:
    await RedisRecovery(world.store).beat("w1", 10_000, {"f": "c"}, 500, slots=1)
    return await sent_by(lambda recovery: recovery.bury("w1", died=True), world)


async def bury_with_a_claim(world: RedisWorld) -> Command[Any]:
    await claimed(world)
    return await sent_by(lambda recovery: recovery.bury("w1"), world)


async def sweep(world: RedisWorld) -> Command[Any]:
    await claimed(world)

    def without_time(reply: Any) -> Any:
        return reply[1:]

    return replace(await sent_by(lambda recovery: recovery.sweep("r", STEADY), world), parse=without_time)


async def with_a_free_place(world: RedisWorld) -> tuple[TaskRecord, str]:
    """A task that waits for the place of a limit, whose key is lost."""
    second = await waiting_for_a_place(world)
    with pytest.raises(NoPlaceError):
        await world.store.start(second.ref, Start(attempt=1, retries=0, at_ms=now_ms(), worker="w1"))
    limit = world.keys.running(ONLY_ONE.kind, ONLY_ONE.whose)
    cast(Any, world.client).delete(limit)
    return second, limit


async def grant_places(world: RedisWorld) -> Command[Any]:
    _, limit = await with_a_free_place(world)
    return commands.next_of(world.keys, NextScript("grant_places", limit.encode(), (), ()))


async def grant_turns(world: RedisWorld) -> Command[Any]:
    first, *_ = await in_turn(world, 4)
    cast(Any, world.client).zrem(world.keys.window, first.key)
    return commands.next_of(world.keys, NextScript("grant_turns", world.keys.window.encode(), (), ()))


async def look(world: RedisWorld) -> Command[Any]:
    waiting, _ = await with_a_free_place(world)
    keys, ended = world.keys, await created(world)
    cast(Any, world.client).zadd(keys.waiting, {ended.key: 1})
    return Command("look", [keys.waiting, keys.turns], [keys.root, waiting.key, ended.key], lambda reply: reply)


async def held(world: RedisWorld) -> Command[Any]:
    second = await waiting_for_a_place(world)
    limit = world.keys.running(ONLY_ONE.kind, ONLY_ONE.whose)
    await world.store.delete(second.ref)
    cast(Any, world.client).zadd(limit, {second.key: now_ms() + 60_000})
    record = world.keys.record(second.scope, second.task_id)
    return Command("held", [limit, record], [second.key], lambda _: None)


async def recover(world: RedisWorld) -> Command[Any]:
    record = await claimed(world)
    return await sent_by(lambda recovery: recovery.recover(record.key, "w1", "died", POLICY), world)


async def recover_a_failure(world: RedisWorld) -> Command[Any]:
    record = await created(world, a_record())
    assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms(), worker="w1"))
    return await sent_by(lambda recovery: recovery.recover(record.key, "w1", "died", POLICY), world)


async def recover_of_a_worker_that_stopped(world: RedisWorld) -> Command[Any]:
    record = await claimed(world)
    return await sent_by(lambda recovery: recovery.recover(record.key, "w1", "stopped", POLICY), world)


async def lost(world: RedisWorld) -> Command[Any]:
    record = await created(world)
    at_ms = round(cast(Any, world.client).zscore(world.keys.unclaimed, record.key))
    job = PublishedJob(record.key, at_ms, None, None, None)
    return await sent_by(lambda recovery: recovery.lost(job, POLICY), world)


async def requeue(world: RedisWorld) -> Command[Any]:
    return commands.requeue(world.keys, await claimed(world), force=False)


async def requeue_what_may_not_be_repeated(world: RedisWorld) -> Command[Any]:
    record = await created(world, a_record())
    assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms(), worker="w1"))
    return commands.requeue(world.keys, record, force=False)


async def hand_back(world: RedisWorld) -> Command[Any]:
    record = await claimed(world)
    await RedisRecovery(world.store).beat("w2", 60_000, {FINGERPRINT: "c"})
    return commands.hand_back(world.keys, record.ref, a_handback(record))


def a_handback(record: TaskRecord) -> HandBack:
    return HandBack(attempt=1, retries=0, worker="w1", key=record.key, most=3)


async def claimed_jobs(world: RedisWorld) -> Command[Any]:
    await claimed(world)
    await RedisRecovery(world.store).beat("w1", 60_000)
    return Command("claimed", [world.keys.workers], [world.keys.claims(""), 10, 10], lambda reply: reply)


async def overdue(world: RedisWorld) -> Command[Any]:
    record = await parked(world)
    assert await world.store.answer(record.ref, ANSWER, at_ms=now_ms(), start_before_ms=None)
    return Command("overdue", [world.keys.due], [-1, 10], lambda reply: reply)


async def mark(world: RedisWorld) -> Command[Any]:
    return commands.mark(world.keys, StoreMark.new())


async def index(world: RedisWorld) -> Command[Any]:
    return commands.on_index("ZSCORE", world.keys.expiry, (await created(world)).key)


CASES: Final[dict[str, tuple[Callable[[RedisWorld], Awaitable[Command[Any]]], ...]]] = {
    "create": (
        *(create, create_foreign, create_once, create_with_message, create_what_there_is),
        *(create_in_turn, create_what_waits_for_its_turn),
    ),
    "earlier": (earlier, earlier_of_none),
    "delete": (delete, delete_what_has_begun, delete_once),
    "retire": (retire,),
    "keep": (keep,),
    "attend": (attend,),
    "load": (load,),
    "present": (present,),
    "page": (page,),
    "transition": (transition, transition_to_an_end),
    "finish": (finish,),
    "start": (start, start_without_a_place, start_in_turn),
    "claim": (claim,),
    "ask": (ask,),
    "heard": (heard,),
    "park": (park,),
    "answer": (answer, answer_that_waits_for_its_turn),
    "published": (published, published_once),
    "beat": (beat, beat_that_gives_a_turn),
    "bury": (bury, bury_the_dead, bury_the_living, bury_with_a_claim),
    "sweep": (sweep, sweep_that_gives_a_turn),
    "prune": (prune,),
    "look": (look,),
    "held": (held,),
    "grant_places": (grant_places,),
    "grant_turns": (grant_turns,),
    "recover": (recover, recover_a_failure, recover_of_a_worker_that_stopped),
    "lost": (lost,),
    "requeue": (requeue, requeue_what_may_not_be_repeated),
    "hand_back": (hand_back,),
    "claimed": (claimed_jobs,),
    "mark": (mark,),
    "overdue": (overdue,),
    "index": (index,),
}


def test_every_script_is_in_the_table_or_is_never_repeated() -> None:
    assert CASES.keys() | NEVER_REPEATED == SCRIPTS.keys()
    assert CASES.keys() & NEVER_REPEATED == set()


@pytest.mark.parametrize("prepare", [case for cases in CASES.values() for case in cases])
async def test_a_call_that_is_made_again_changes_nothing_and_gets_its_first_answer(
    in_redis: RedisWorld, prepare: Callable[[RedisWorld], Awaitable[Command[Any]]]
) -> None:
    world = in_redis
    command = await prepare(world)
    world.transitions.clear()
    first = await world.store.run(command)
    reported, state, heard_of = list(world.transitions), kept(world), events(world)
    world.transitions.clear()
    assert await world.store.run(command) == first
    assert kept(world) == state
    assert events(world) == heard_of
    # The first report was lost with the answer. A script that needs no name finds its work done, and reports nothing.
    assert command.script in NAMED or not world.transitions or world.transitions[0].cause in ("claimed", "started")
    if command.script in NAMED:
        assert [(one.cause, one.before, one.after, one.attempt, one.leg) for one in world.transitions] == [
            (one.cause, one.before, one.after, one.attempt, one.leg) for one in reported
        ]


def kept(world: RedisWorld) -> dict[bytes, object]:
    """What the store holds."""
    client = cast(Any, world.client)

    def members(key: bytes) -> object:
        return client.zrange(key, 0, -1, withscores=not key.decode().endswith(BY_THE_CLOCK))

    reads: dict[bytes, Callable[[bytes], object]] = {
        b"hash": client.hgetall,
        b"string": client.get,
        b"set": client.smembers,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": members,
    }
    return {key: reads[client.type(key)](key) for key in world.keys_left()}


def events(world: RedisWorld) -> list[str]:
    """The channels that a change was published on so far."""
    world.told(a_record().ref)
    return list(cast(Any, world)._events)


@pytest.mark.parametrize("command", ["ZREM", "DEL"])
async def test_removing_an_index_entry_twice_is_no_error(in_redis: RedisWorld, command: str) -> None:
    record = await created(in_redis)
    removal = commands.on_index(command, in_redis.keys.unclaimed, *([record.key] if command == "ZREM" else []))
    await in_redis.store.run(removal)
    state = kept(in_redis)
    await in_redis.store.run(removal)
    assert kept(in_redis) == state


# The port: a call that a job makes again by itself has the same name.


async def test_a_creation_that_is_made_again_resets_no_claimed_job(world: World) -> None:
    record = await claimed(world)
    assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms(), worker="w1"))
    await world.store.create(record, SNAPSHOT, open_tasks("r", 1))
    found = await world.store.load(record.ref)
    assert found is not None
    assert found.record.claim is not None
    assert found.record.started_at_ms is not None
    assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms(), worker="w2")) is None


async def test_a_repeated_end_is_accepted_again(world: World) -> None:
    record = await claimed(world)
    change = Change(to="failed", attempt=1, status_message="no")
    for _ in range(2):
        changed = await world.store.change(record.ref, change)
        assert changed is not None
        assert changed.accepted
        assert changed.record.revision == 2
    other = await world.store.change(record.ref, replace(change, call="another"))
    assert other is not None
    assert not other.accepted


async def test_a_result_that_is_stored_again_is_taken_again(world: World) -> None:
    record = await claimed(world)
    change = Change(to="completed", attempt=1)
    assert [await world.store.finish(record.ref, change, FINISHED) for _ in range(2)] == [True, True]
    assert world.told(record.ref) == 1
    assert not await world.store.finish(record.ref, Change(to="completed", attempt=1), FINISHED)


async def test_a_job_that_parks_again_has_parked(world: World) -> None:
    record = await claimed(world)
    given = asking()
    answers = [await world.store.park(record.ref, [QUESTION], given, next_leg(record)) for _ in range(2)]
    assert answers == [True, True]
    found = await world.store.load(record.ref)
    assert found is not None
    assert (found.record.leg, found.record.attempt, found.record.revision) == (2, 2, 2)


async def test_a_job_that_is_handed_back_again_counts_once(world: World) -> None:
    record = await claimed(world)
    await world.recovery().beat("w2", 60_000, {FINGERPRINT: "c"})
    handback = a_handback(record)
    first = await world.store.hand_back(record.ref, handback)
    assert first.verdict == "handed back"
    assert await world.store.hand_back(record.ref, handback) == first
    found = await world.store.load(record.ref)
    assert found is not None
    assert found.record.attempt == 2


async def test_other_calls_meanwhile_make_no_call_new(world: World) -> None:
    record = await claimed(world)
    changes = [Change(to="working", attempt=1, status_message=str(number)) for number in range(4)]
    for change in changes:
        await world.store.change(record.ref, change)
    again = await world.store.change(record.ref, changes[0])
    assert again is not None
    assert (again.accepted, again.record.status_message) == (True, "3")


# Connections that break after the store has done what it was told, and before its answer has come.


@pytest.fixture
def proxy(store_url: str) -> Any:
    with Proxy.before(store_url) as proxy:
        yield proxy


@pytest.fixture
async def through(proxy: Proxy, in_redis: RedisWorld, store_url: str) -> Any:
    """The same records through a proxy."""
    world = RedisWorld(proxy.redis_url, prefix=in_redis.prefix)
    with no_eternal_keys(store_url, [world.prefix]):
        yield world
    await world.aclose()


async def prepared(world: RedisWorld, record: TaskRecord) -> None:
    """Have the scripts loaded, so that the next answer is not that one is missing."""
    await world.store.create(record, SNAPSHOT)
    for name, script in cast(Any, world.store)._scripts.items():
        assert name in SCRIPTS
        world.client.script_load(script.script)


@pytest.mark.shows("C11")
async def test_a_creation_whose_answer_is_lost_creates_once_also_when_its_job_is_claimed_meanwhile(
    in_redis: RedisWorld, through: RedisWorld, proxy: Proxy
) -> None:
    await prepared(through, a_record())
    record = a_record()
    taken: list[bool] = []
    proxy.lose_next_answer(
        lambda: taken.append(in_redis.ledger.claim(record.ref, attempt=1, claim=Claim("w1", now_ms())))
    )
    await soon(through.store.create(record, SNAPSHOT, open_tasks("r", 1)))
    assert taken == [True]
    found = await in_redis.store.load(record.ref)
    assert found is not None
    assert found.record.claim is not None
    assert cast(Any, in_redis.client).zscore(in_redis.keys.unclaimed, record.key) is None


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_change_whose_answer_is_lost_was_accepted_and_is_reported_once(
    in_redis: RedisWorld, through: RedisWorld, proxy: Proxy, blocking: bool
) -> None:
    await prepared(through, a_record())
    record = await claimed(in_redis)
    assert through.ledger.find("auth:nobody:x:tool:y") is None  # it is connected
    proxy.lose_next_answer()
    change = Change(to="completed", attempt=1)
    if blocking:
        changed = await soon(asyncio.to_thread(through.ledger.change, record.ref, change))
    else:
        changed = await soon(through.store.change(record.ref, change))
    assert changed is not None
    assert (changed.accepted, changed.record.revision) == (True, 2)
    assert in_redis.told(record.ref) == 1
    assert [one.cause for one in through.transitions] == ["completed"]


async def test_a_call_with_an_unrepeatable_reply_is_not_repeated(
    in_redis: RedisWorld, through: RedisWorld, proxy: Proxy
) -> None:
    await prepared(through, a_record())
    record = await asked(in_redis)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: through.store.count_failed_lookups("r", 1, window_ms=60_000),
        lambda: through.store.withdraw(record.ref, [QUESTION.key], attempt=1, at_ms=now_ms()),
        lambda: through.open_tasks().due(1_000, 10),
        lambda: through.outbox().due(10),
        lambda: through.outbox().take("msg_0", 1_000),
    ]
    assert len(calls) == len(NEVER_REPEATED)
    for call in calls:
        await through.store.load(record.ref)  # it is connected
        proxy.lose_next_answer()
        with pytest.raises(StoreUnavailableError):
            await soon(call())
    assert (await in_redis.store.count_failed_lookups("r", 1, window_ms=60_000)).number == 2


@pytest.mark.shows("C11")
async def test_a_creation_that_arrives_after_it_was_taken_back_creates_nothing(
    store_url: str, in_redis: RedisWorld, proxy: Proxy
) -> None:
    """What is between has held it up, and its client has gone."""
    held_up = RedisWorld(proxy.redis_url, prefix=in_redis.prefix)
    other = RedisWorld(store_url, prefix=in_redis.prefix)
    try:
        await prepared(held_up, a_record())
        record = a_record()
        proxy.stall()
        creating = asyncio.create_task(held_up.store.create(record, SNAPSHOT))
        for _ in range(10):
            await asyncio.sleep(0)  # it is sent
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        assert await other.store.delete(record.ref)
        calls = calls_of_scripts(other)
        proxy.resume()
        await eventually(lambda: calls_of_scripts(other) > calls, what="the creation has arrived")
        assert await other.store.load(record.ref) is None
        assert cast(Any, other.client).zscore(other.keys.unclaimed, record.key) is None
    finally:
        await held_up.aclose()
        await other.aclose()


def calls_of_scripts(world: RedisWorld) -> int:
    return int(cast(Any, world.client).info("commandstats")["cmdstat_evalsha"]["calls"])


async def test_a_call_that_was_not_sent_is_sent_again_even_if_it_must_not_be_repeated(
    through: RedisWorld, proxy: Proxy
) -> None:
    """A connection that was reset while it was idle costs no request, not even one that is never repeated."""
    for number in range(1, 4):
        assert (await soon(through.store.count_failed_lookups("r", 1, window_ms=60_000))).number == number
        assert proxy.reset() >= 1
