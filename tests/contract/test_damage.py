"""Garbage in every kind of key: what cannot be read is logged once and removed, and the good tasks go on."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import pytest
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from mcp_celery.common.rates import Rate
from mcp_celery.engine import (
    Change,
    Claim,
    EarlierTask,
    ExposedTasks,
    ForeignPlan,
    ForeignWork,
    HandBack,
    Idempotency,
    JSONObject,
    PlaceLimit,
    Quota,
    RateLimit,
    Start,
    StoredTask,
    Submission,
    TaskEngine,
    TaskRecord,
    now_ms,
)
from mcp_celery.engine.followup_jobs import as_itself
from mcp_celery.engine.foreign.poller import Watcher
from mcp_celery.engine.places import NoPlaceError
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.engine.recovery.store_identity import StoreIdentity
from mcp_celery.engine.store_mark import StoreMark
from mcp_celery.engine.webhook_dispatcher import WebhookDispatcher
from mcp_celery.errors import McpCeleryError, StoredDataError, StoreUnavailableError
from mcp_celery.server.connections import ended
from mcp_celery.store import RedisExposed, RedisRecovery, RedisWebhooks
from mcp_celery.store.keys import RedisKeys
from mcp_celery.store.unreadable import shown
from mcp_celery.testing import MemoryTaskQueue, MemoryTaskResults
from tests.support.waiting import eventually
from tests.support.worlds import ALICE, LIMITS, SNAPSHOT, RedisWorld, a_record, open_tasks

pytestmark = pytest.mark.anyio

POLICY: Final = RecoveryPolicy(heartbeat_ms=20, max_redeliveries=1, publish_timeout_ms=-1_000)
"""Unclaimed jobs are looked at at once."""
DEAD: Final = "celery@dead/1"
STOPPED: Final = "celery@stopped/1"
LIVING: Final = "celery@living/1"
LONG: Final = "x" * 200
"""A component of which the Celery id is shortened."""
WEBHOOK: Final = "msg_" + "0" * 40
RATE: Final = RateLimit("alice", Rate(80, 60_000))
LIMIT: Final = PlaceLimit("component", "build_report", 1)
QUOTA: Final = replace(open_tasks("alice", 80, bytes_=1_000_000), rates=(RATE,))


@dataclass(frozen=True)
class Kind:
    """A kind of key.

    Attributes:
        type: What it is in Redis.
        key: The key, for a task that is to suffer. Keys that all tasks share are the same for each.
        is_shared: Whether it is one of those.
        removes: Whether each entry that cannot be read is removed from it.
    """

    type: str
    key: Callable[[RedisKeys, TaskRecord], str]
    is_shared: bool = True
    removes: bool = False


def _list(keys: RedisKeys, _: TaskRecord) -> str:
    index = keys.index(ALICE.scope, ALICE.issuer, None)
    assert index is not None
    return index


def _line(keys: RedisKeys) -> str:
    return keys.running(LIMIT.kind, LIMIT.whose) + ":waiting"


KINDS: Final[dict[str, Kind]] = {
    "record": Kind("hash", lambda keys, task: keys.record(task.scope, task.task_id), is_shared=False),
    "snapshot": Kind("string", lambda keys, task: keys.snapshot(task.scope, task.task_id), is_shared=False),
    "deleted": Kind("string", lambda keys, task: keys.deleted(task.scope, task.task_id), is_shared=False),
    "questions": Kind("hash", lambda keys, task: keys.questions(task.scope, task.task_id), is_shared=False),
    "answers": Kind("hash", lambda keys, task: keys.answers(task.scope, task.task_id), is_shared=False),
    "job_alias": Kind("string", lambda keys, task: keys.job_alias(task.job_id), is_shared=False),
    "once": Kind("hash", lambda keys, task: keys.once(task.task_id), is_shared=False),
    "index": Kind("zset", _list, removes=True),
    "counted": Kind("zset", lambda keys, _: keys.counted("open", QUOTA.requestor)),
    "counted (stored)": Kind("zset", lambda keys, _: keys.counted("stored", QUOTA.requestor)),
    "counted (bytes)": Kind("hash", lambda keys, _: keys.counted("stored", QUOTA.requestor) + ":bytes"),
    "counted (created)": Kind("zset", lambda keys, _: keys.counted("created", QUOTA.requestor)),
    "counted (failed)": Kind("string", lambda keys, _: keys.counted("failed", "alice")),
    "expiry": Kind("zset", lambda keys, _: keys.expiry, removes=True),
    "ended": Kind("zset", lambda keys, _: keys.ended),
    "remembered": Kind("hash", lambda keys, _: keys.remembered),
    "workers": Kind("zset", lambda keys, _: keys.workers),
    "components": Kind("hash", lambda keys, _: keys.components(LIVING)),
    "claims": Kind("set", lambda keys, _: keys.claims(DEAD), removes=True),
    "unread": Kind("zset", lambda keys, _: keys.unread),
    "due": Kind("zset", lambda keys, _: keys.due, removes=True),
    "unclaimed": Kind("zset", lambda keys, _: keys.unclaimed, removes=True),
    "exposed": Kind("zset", lambda keys, _: keys.exposed, removes=True),
    "running": Kind("zset", lambda keys, _: keys.running(LIMIT.kind, LIMIT.whose)),
    "running (waiting)": Kind("zset", lambda keys, _: _line(keys), removes=True),
    "waiting": Kind("zset", lambda keys, _: keys.waiting, removes=True),
    "window": Kind("zset", lambda keys, _: keys.window),
    "turns": Kind("zset", lambda keys, _: keys.turns, removes=True),
    "line": Kind("zset", lambda keys, _: keys.line("alice"), removes=True),
    "slots": Kind("hash", lambda keys, _: keys.slots),
    "attended": Kind("zset", lambda keys, _: keys.attended, removes=True),
    "webhooks": Kind("zset", lambda keys, _: keys.webhooks, removes=True),
    "webhook": Kind("hash", lambda keys, _: keys.webhook(WEBHOOK), is_shared=False),
    "silent": Kind("string", lambda keys, _: keys.silent("receiver"), is_shared=False),
    "mark": Kind("string", lambda keys, _: keys.mark),
    "reaper": Kind("string", lambda keys, _: keys.reaper),
}
NO_KEYS: Final = {
    "prefix", "namespace", "records", "all_records", "channel", "idle_channel", "all_channels", "doctor",
    "kind_of_limit", "line_of", "root", "root_of", "is_tagged", "is_sharded", "never",
}  # fmt: skip
"""Names of :class:`RedisKeys` under which nothing is kept, or nothing for longer than a script."""

READ_WITH_RECORDS: Final = {"index", "exposed", "running (waiting)", "waiting", "line"}

RUINED_FIELDS: Final[list[dict[str, str | bytes]]] = [
    {"status": "gone"},
    {"status": b"\xff"},
    {"key": "no key"},
    {"task_id": ""},
    {"task_id": "a b"},
    {"scope": b"\xfe\xfe"},
    {"type": "thing"},
    {"component": ""},
    {"created_at_ms": "soon"},
    {"created_at_ms": "9" * 40},
    {"updated_at_ms": ""},
    {"ttl_ms": "-1"},
    {"attempt": "x"},
    {"leg": "0"},
    {"leg": "99999999"},
    {"revision": "x"},
    {"redeliveries": "x"},
    {"claim_retries": "x"},
    {"started_retries": "x"},
    {"work": "["},
    {"work": "[99999999,1,true]"},
    {"work": '["1",1,true]'},
    {"error": "[" * 100_000},
    {"progress": '["a","b"]'},
    {"result_key": b"\xff"},
    {"listed_in": "", "counted_in": b"\xff"},
    {"stored_in": b"\xff"},
    {"claim_worker": b"\xff", "claim_at_ms": "1"},
    {"fingerprint": b"\xff"},
    {"options": "["},
    {"options": "7"},
    {"options": '{"priority": "high"}', "fingerprint": "f"},
    {"handbacks": "x", "fingerprint": "f"},
    {"handback_pauses_ms": "x", "fingerprint": "f"},
]
RUINED_TEXTS: Final = [
    "", "{", "[]", "null", "1e999", "[1,2]", '[0,true,"w",false]', '[99999999,true,"w",false]', '["1",1,1,1]',
    '[1,true,7,false]', '[1,true,"w","["]', b"\xff\xfe", "[" * 100_000,
]  # fmt: skip
NO_MEMBERS: Final = [
    b"\xff\xfe", b"", b"no key", b"anon:x", b"anon::tool:x", b"auth:a:b:c:d:e:f", b"anon:x:thing:y", b"s:t:tool:x",
    b"auth::t:tool:x", b"a\nline", b"anon:" + b"x" * 5_000 + b":tool:y", b"anon:\x00:tool:x\xff",
]  # fmt: skip


def garbage(seed: str, like: bytes) -> list[bytes]:
    """Members that are none, and others that may be, of tasks that are not there."""
    chance = random.Random(seed)
    noise = [chance.randbytes(chance.randint(1, 60)) for _ in range(30)]
    broken = [like[: chance.randint(1, len(like) - 1)] + chance.randbytes(2) for _ in range(20)]
    return list(dict.fromkeys([*NO_MEMBERS, *noise, *broken]))


def put(world: RedisWorld, kind: str, key: str, entries: Sequence[str | bytes]) -> None:
    """Write entries to a key of a kind, with a lifetime as all keys have."""
    client: Any = world.client
    if kind == "zset":
        scores = [float("-inf"), 0, now_ms() - 1] if not key.startswith(f"{world.prefix}:contract:list") else [0]
        client.zadd(key, {entry: scores[number % len(scores)] for number, entry in enumerate(entries)})
    elif kind == "set":
        client.sadd(key, *entries)
    elif kind == "hash":
        client.hset(key, mapping={entry: RUINED_TEXTS[n % len(RUINED_TEXTS)] for n, entry in enumerate(entries)})
    elif kind == "list":
        client.rpush(key, *entries)
    else:
        client.set(key, entries[0])
    client.pexpire(key, 60_000)


def publish_nothing(_record: TaskRecord, _producer: object) -> None:
    """The queue in memory publishes nothing."""


class Exposure:
    """Exposes whatever is asked for."""

    async def plan(self, submission: Submission) -> ForeignPlan | None:
        return ForeignPlan("shop.sell", ForeignWork(), publish_nothing, expires=submission.config.expires)

    def returned(self, component: str, value: Any) -> JSONObject:
        return {"content": [{"type": "text", "text": repr(value)}]}

    def raised(self, component: str, exception_name: str, arguments: Sequence[Any]) -> JSONObject:
        return {"content": [], "isError": True}


class Bin:
    """A result backend that notes what it is told to forget."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []

    async def forget(self, job_ids: Sequence[str]) -> None:
        self.forgotten += job_ids


class Site:
    """Everything that recovers, over one Redis."""

    def __init__(self, world: RedisWorld) -> None:
        self.world, self.keys = world, world.keys
        self.recovery = RedisRecovery(world.store)
        self.queue, self.bin, self.results = MemoryTaskQueue(), Bin(), MemoryTaskResults()
        exposed = ExposedTasks(Exposure(), self.results)
        self.engine = TaskEngine(
            store=world.store,
            queue=self.queue,
            bus=world.bus,
            results=self.results,
            limits=LIMITS,
            answer_version=LATEST_HANDSHAKE_VERSION,
            exposed=exposed,
        )
        self.reaper = Reaper(
            store=self.recovery,
            tasks=world.store,
            queue=self.queue,
            results=self.bin,
            declared=as_itself,
            policy=POLICY,
        )
        self.identity = StoreIdentity(self.recovery, makes=True, pause_seconds=0.02)
        self.watcher = Watcher(RedisExposed(world.store), exposed, self.engine.settling, interval_ms=20)
        self.outbox, self.delivered = RedisWebhooks(world.store), list[str]()
        self.dispatcher = WebhookDispatcher(self.outbox, self._deliver)

    async def _deliver(self, webhook_id: str) -> None:
        await self.outbox.silent_ms("receiver")
        webhook = await self.outbox.take(webhook_id, 60_000)
        if webhook is not None:
            self.delivered.append(webhook.key)
            await self.outbox.settle(webhook_id)

    @asynccontextmanager
    async def recovering(self) -> AsyncGenerator[None]:
        endless = [self.reaper.run(), self.watcher.run(), self.identity.run(), self.dispatcher.run()]
        running = [asyncio.create_task(one) for one in endless]
        async with AsyncExitStack() as stack:
            for task in running:
                stack.push_async_callback(ended, task)
            yield

    async def created(self, quota: Quota = QUOTA, **values: Any) -> TaskRecord:
        record = replace(a_record(), **values)
        await self.world.store.create(record, SNAPSHOT, quota, Idempotency(record.task_id, "r"))
        return record

    async def victim(self) -> TaskRecord:
        """A task that every part of recovery meets."""
        record = await self.created(work=ForeignWork(), component=LONG)
        assert self.world.ledger.claim(record.ref, attempt=1, claim=Claim(DEAD, now_ms()))
        client: Any = self.world.client
        client.zadd(self.keys.due, {record.key: 0})
        client.pexpire(self.keys.due, 60_000)
        client.zadd(self.keys.expiry, {record.key: now_ms()})
        client.zadd(self.keys.attended, {record.key: 0})
        client.pexpire(self.keys.attended, 60_000)
        client.zadd(self.keys.webhooks, {WEBHOOK: 0})
        client.pexpire(self.keys.webhooks, 60_000)
        return record

    async def found(self, record: TaskRecord) -> StoredTask | None:
        return await self.world.store.load(record.ref)


async def good_tasks_go_on(site: Site) -> None:
    """Make a task for each part of recovery, and wait until it has done its part."""
    world = site.world
    lost, due, sold = await site.created(), await site.created(), await site.created(work=ForeignWork())
    brief = await site.created(ttl_ms=200)  # long enough for a slow machine to create it
    assert world.ledger.claim(lost.ref, attempt=1, claim=Claim(DEAD, now_ms()))
    assert world.ledger.claim(due.ref, attempt=1, claim=Claim(STOPPED, now_ms()))
    await site.recovery.beat(DEAD, 0)
    await site.recovery.beat(STOPPED, 60_000)
    assert await site.recovery.recover(due.key, STOPPED, "stopped", POLICY) == "nothing"
    await site.recovery.bury(STOPPED)
    back = await site.created(fingerprint="f")
    await site.recovery.beat(LIVING, 60_000, {"f": "tool:build_report"}, slots=1)
    handback = HandBack(attempt=1, retries=0, worker=STOPPED, key=back.key, most=1)
    assert (await world.store.hand_back(back.ref, handback)).verdict == "handed back"
    site.results.put(sold.job_id, "SUCCESS", 1)
    first, second = [await site.created(quota=replace(QUOTA, places=(LIMIT,))) for _ in range(2)]
    await start(world, first)
    await start(world, second)
    in_turn = [await site.created(quota=replace(QUOTA, line="alice")) for _ in range(3)]
    abandoned = await site.created(abandon_after_ms=50)
    hooked = await site.created(webhook="contents")
    await world.store.change(hooked.ref, Change(to="completed"))
    async with site.recovering():
        await world.store.change(first.ref, Change(to="cancelled"))
        await eventually(lambda: second.task_id in {one.task_id for one, _ in site.queue.published}, what="a place")
        for one in in_turn[:2]:
            await world.store.change(one.ref, Change(to="cancelled"))
        await eventually(lambda: in_turn[2].task_id in {one.task_id for one, _ in site.queue.published}, what="a turn")
        await eventually(lambda: abandoned.job_id in site.queue.revoked, what="the job of an abandoned task")
        await eventually(lambda: hooked.key in site.delivered, what="the webhook of an ended task")
        await eventually(lambda: lost.task_id in {one.task_id for one, _ in site.queue.published}, what="lost job")
        await eventually(lambda: due.task_id in {one.task_id for one, _ in site.queue.published}, what="due job")
        await eventually(lambda: (back.task_id, 2) in {(one.task_id, one.attempt) for one, _ in site.queue.published})
        await eventually(lambda: brief.job_id in site.queue.revoked, what="the job of an expired task is revoked")
        await eventually(lambda: brief.job_id in site.bin.forgotten, what="its result is forgotten")

        async def is_settled() -> bool:
            stored = await site.found(sold)
            return stored is not None and stored.record.status == "completed"

        await eventually(is_settled, what="the exposed job is settled")
        await eventually(lambda: not is_member(world, site.keys.workers, DEAD), what="the dead worker is forgotten")
        await eventually(lambda: site.identity.mark, what="the store's mark is known")
    listed = {record.task_id for record in (await site.engine.list(ALICE)).records}
    assert {lost.task_id, due.task_id, sold.task_id} <= listed
    assert (await world.store.count_failed_lookups("alice", 1, window_ms=1_000)).number >= 1


async def start(world: RedisWorld, record: TaskRecord) -> None:
    """Start a task's job, if there is a place for it."""
    with suppress(NoPlaceError):
        await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms(), worker=LIVING))


def is_member(world: RedisWorld, index: str, member: str) -> bool:
    client: Any = world.client
    return client.zscore(index, member) is not None


def removed(log: pytest.LogCaptureFixture, key: str) -> Counter[str]:
    """What was removed from a key, as the log shows it."""
    lines = [line for line in log.messages if f" from {shown(key)} " in line and line.startswith("removed ")]
    return Counter(line.removeprefix("removed ").partition(" from ")[0] for line in lines)


@pytest.fixture(autouse=True)
def publish_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcp_celery.store.recovery.PUBLISHING_MS", -1)


@pytest.fixture(autouse=True)
def no_outage(caplog: pytest.LogCaptureFixture) -> Iterable[None]:
    """Fails a test in which damage was taken for an outage of the store."""
    yield
    assert "(MCP_CELERY_REDIS_URL) failed" not in caplog.text


def test_every_kind_of_key_is_known_here() -> None:
    names = {name for name in dir(RedisKeys) if not name.startswith("_")} | set(RedisKeys.__dataclass_fields__)
    assert names - NO_KEYS == {name.partition(" ")[0] for name in KINDS}, "a new kind of key needs its garbage"


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.is_shared])
async def test_unreadable_entries_stop_no_other_task_and_are_removed(
    name: str, in_redis: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    site, kind = Site(in_redis), KINDS[name]
    victims = [await site.victim() for _ in RUINED_TEXTS] if name == "remembered" else [await site.victim()]
    key = kind.key(site.keys, victims[0])
    entries: list[str | bytes] = [*garbage(name, victims[0].key.encode())]
    if name == "remembered":
        entries = [victim.key for victim in victims]
    elif kind.type == "string":
        entries = ["abc"]
    put(in_redis, kind.type, key, entries)
    if name == "reaper":
        in_redis.client.persist(key)  # nobody's lock would end
    await good_tasks_go_on(site)
    if kind.removes:
        left: Any = in_redis.client.smembers(key) if kind.type == "set" else in_redis.client.zrange(key, 0, -1)
        assert not set(left) & set(entries)
        logged = removed(caplog, key)
        # Of an index that is read with its records, what may be a task's place is taken for that of an expired one.
        told = [one for one in NO_MEMBERS if name not in READ_WITH_RECORDS or b":" not in one]
        assert {shown(member) for member in told} <= set(logged)
        assert {number for shown_as, number in logged.items() if "\\u2026" not in shown_as} == {1}
    if name == "remembered":
        assert removed(caplog, key) == {shown(victim.key): 1 for victim in victims}
        assert {victim.job_id for victim in victims} <= set(site.queue.revoked), "their records tell the same"


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.is_shared])
async def test_a_shared_key_of_another_type_is_deleted_and_logged(
    name: str, in_redis: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    site, kind = Site(in_redis), KINDS[name]
    key = kind.key(site.keys, await site.victim())
    in_redis.client.delete(key)
    put(in_redis, "list", key, ["a"])
    await good_tasks_go_on(site)
    assert in_redis.client.type(key) != b"list"
    assert [line for line in caplog.messages if shown(key) in line] == [
        f"deleted {shown(key)} in the task store: a key of this name has another type"
    ]


async def ruined(site: Site, name: str, how: str | bytes | dict[str, str | bytes]) -> TaskRecord:
    """A task of which one key is ruined: it holds another type, other fields, or another text."""
    kind, victim = KINDS[name], await site.victim()
    key, client = kind.key(site.keys, victim), cast("Any", site.world.client)
    if isinstance(how, dict):
        client.hset(key, mapping=how)
    elif how in ("string", "list", "set", "zset", "hash"):
        client.delete(key)
        put(site.world, str(how), key, ["a", b"\xff"])
    elif kind.type == "hash":
        client.hset(site.keys.record(victim.scope, victim.task_id), "status", "input_required")
        client.hset(key, mapping={"q": how, b"\xff": how})
        client.pexpire(key, 60_000)
    else:
        client.set(key, how, ex=60)
    return victim


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.is_shared])
async def test_damaged_keys_of_one_task_concern_no_other_task(
    name: str, in_redis: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(in_redis)
    victims = [await ruined(site, name, other) for other in ("string", "list", "set", "zset", "hash")]
    victims += [await ruined(site, name, entry) for entry in (RUINED_FIELDS if name == "record" else RUINED_TEXTS)]
    await good_tasks_go_on(site)
    for victim in victims:
        for ask in (site.engine.get, site.engine.cancel):
            try:
                await ask(ALICE, victim.task_id)
            except StoreUnavailableError:
                pytest.fail("a damaged task was taken for an outage")
            except McpCeleryError:
                continue
        if name == "job_alias":
            assert in_redis.ledger.find(victim.job_id) is None
    for index in (site.keys.expiry, site.keys.claims(DEAD)):
        assert set(removed(caplog, index).values()) <= {1}


async def test_the_reason_names_the_damaged_key(in_redis: RedisWorld, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(in_redis)
    victim = await site.victim()
    key = site.keys.record(victim.scope, victim.task_id)
    in_redis.client.delete(key)
    put(in_redis, "list", key, ["a"])
    with pytest.raises(StoredDataError, match="what the task store holds of it is damaged") as refusal:
        await in_redis.store.load(victim.ref)
    assert key in refusal.value.reason
    await site.recovery.beat(DEAD, 0)
    assert await site.recovery.recover(victim.key, DEAD, "died", POLICY) == "nothing"
    (line,) = caplog.messages
    assert line.startswith(f"removed {shown(victim.key)} from {shown(site.keys.claims(DEAD))} in the task store: ")
    assert "WRONGTYPE" in line
    assert key in line


async def test_another_key_of_a_task_is_not_taken_for_its_own(
    in_redis: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    site, client = Site(in_redis), cast("Any", in_redis.client)
    task = await site.created(work=ForeignWork())
    await site.recovery.beat(DEAD, 0)
    assert in_redis.ledger.claim(task.ref, attempt=1, claim=Claim(DEAD, now_ms()))
    other = task.key + "s"
    for index in (site.keys.due, site.keys.exposed):
        client.zadd(index, {other: 0})
        client.pexpire(index, 60_000)
    client.sadd(site.keys.claims(DEAD), other)
    assert await site.recovery.recover(other, DEAD, "died", POLICY) == "nothing"
    assert list(await site.recovery.claimed(DEAD)) == [task.key]
    assert [record.key for record in (await RedisExposed(in_redis.store).due(20, 500)).records] == [task.key]
    await site.reaper.sweep()
    assert site.queue.published == []
    for index in (site.keys.due, site.keys.exposed):
        assert removed(caplog, index) == {shown(other): 1}


@pytest.mark.parametrize("damage", ["another type", "", "x:snapshot", "publishing"])
async def test_an_idempotency_key_that_leads_nowhere_is_free(
    damage: str, in_redis: RedisWorld, caplog: pytest.LogCaptureFixture
) -> None:
    site, client = Site(in_redis), cast("Any", in_redis.client)
    task, other = await site.created(), a_record()
    once, key = Idempotency(task.task_id, "r"), site.keys.once(task.task_id)
    if damage == "another type":
        client.delete(key)
        put(in_redis, "list", key, ["a"])
    elif damage == "publishing":
        client.hset(key, "publishing", "x")
    else:
        client.hset(key, "task", damage.replace("x", task.task_id))
    found = await in_redis.store.create(other, SNAPSHOT, QUOTA, once)
    assert found == (EarlierTask(task.task_id, True, "unpublished") if damage == "publishing" else None)
    assert len(caplog.messages) == (damage == "another type")


async def test_a_mark_that_cannot_be_read_is_made_anew(in_redis: RedisWorld, caplog: pytest.LogCaptureFixture) -> None:
    site = Site(in_redis)
    for damage in ("abc", "@1", "0123456789abcdef@", "0123456789abcdef@1 "):
        put(in_redis, "string", site.keys.mark, [damage])
        new = StoreMark.new()
        assert await site.recovery.mark(new) == new
    assert len(caplog.messages) == 4


async def test_a_creation_repairs_what_it_writes_to(in_redis: RedisWorld, caplog: pytest.LogCaptureFixture) -> None:
    site, client = Site(in_redis), cast("Any", in_redis.client)
    put(in_redis, "list", site.keys.remembered, ["a"])
    put(in_redis, "zset", _list(site.keys, a_record()), ["no position"])
    task = await site.created()
    assert client.hkeys(site.keys.remembered) == [task.key.encode()]
    assert client.zrange(_list(site.keys, task), 0, -1) == [task.position.encode()]
    assert len(caplog.messages) == 2


async def test_a_sweep_deletes_what_no_creation_has_repaired(in_redis: RedisWorld) -> None:
    site = Site(in_redis)
    task = await site.created(ttl_ms=30)
    in_redis.client.delete(site.keys.remembered)
    put(in_redis, "list", site.keys.remembered, ["a"])
    found = await site.recovery.sweep("me", POLICY)
    assert found is not None
    assert [one.key for one in found.expiring] == [task.key]
    assert not in_redis.client.exists(site.keys.remembered)
