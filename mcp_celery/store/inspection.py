"""Reads the tasks of any caller, for operators. Reading changes nothing, and each call reads a bounded part."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Final, cast

from mcp_celery.common.redis_url import parse
from mcp_celery.engine import PlaceKind, RpcError, TaskRecord, TaskRef
from mcp_celery.engine.recovery.model import RequeueVerdict
from mcp_celery.keys import is_shortened, parse_task_key, task_key_from_job_id
from mcp_celery.sealing import SealError, is_sealed
from mcp_celery.store import commands
from mcp_celery.store.backend import RedisBackend
from mcp_celery.store.cluster import node_client
from mcp_celery.store.codec import Openers, decode_record, flat_to_mapping
from mcp_celery.store.keys import RedisKeys
from mcp_celery.store.records import RedisTaskStore
from mcp_celery.store.unreadable import UNREADABLE, key_of

PAGE: Final = 500
"""How many tasks are read with one request."""
SCANNED: Final = 1_000
"""How many entries Redis looks at for one request of a scan."""
UNOPENED: Final = RpcError(0, "sealed with other MCP_CELERY_ENCRYPTION_KEYS")
"""Stands for the error of a failed task that this process cannot open."""


@dataclass(frozen=True, slots=True)
class InspectedTask:
    """A task as an operator sees it.

    Attributes:
        record: The record. A message that this process cannot open is None, an error ``UNOPENED``.
        has_started: Whether the body of its current attempt and retry has started.
        is_parked: Whether its next job waits for answers, and none runs.
        claimed_retries: With how many retries the job was delivered that a worker has; None where none has it.
        handbacks: How often its current attempt was handed back.
    """

    record: TaskRecord
    has_started: bool
    is_parked: bool
    claimed_retries: int | None
    handbacks: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where an open task stands in the indices.

    Attributes:
        due_ms: Since when its job is to be published (ms since the epoch); None: it is not.
        unclaimed_ms: Since when the broker should have its job, and no worker has received it; None: it is not so.
        ahead: How many jobs of the same server have waited for longer.
        followers: How many processes listen to its changes.
        now_ms: The time when this was read, by the clock of the store.
        before_place: How many tasks wait before it for a place of a limit on running jobs; None: it waits for none.
        limit: What that limit counts.
    """

    due_ms: int | None
    unclaimed_ms: int | None
    ahead: int
    followers: int
    now_ms: int
    before_place: int | None = None
    limit: PlaceKind | None = None


@dataclass(frozen=True, slots=True)
class LeasedWorker:
    """A worker as the store knows it.

    Attributes:
        worker: Its name in claims: Celery's node name, ``/``, and a mark of its process.
        until_ms: Until when its last heartbeat holds, in ms since the epoch by the clock of the store.
        components: The components whose jobs it takes, by fingerprint.
        claims: How many jobs it has.
        slots: How many jobs it can run at a time; None: it has not said so.
    """

    worker: str
    until_ms: int
    components: dict[str, str]
    claims: int
    slots: int | None = None

    @property
    def node(self) -> str:
        """Celery's node name."""
        return self.worker.rpartition("/")[0]


class RedisInspection:
    """Reads the tasks of one server, of every caller.

    Args:
        store: Whose connections are used.
    """

    def __init__(self, store: RedisTaskStore) -> None:
        self._store = store
        self._keys: RedisKeys = store.keys
        self._client = cast(Any, store.client.redis)

    async def _ask(self, method: str, key: str, *args: Any, **options: Any) -> Any:
        """Call a method of redis-py on a key."""
        return await self._store.guarded(partial(getattr(self._client, method), key, *args, **options), key=key)

    async def _together(self, calls: Sequence[tuple[str, *tuple[Any, ...]]]) -> list[Any]:
        """Send commands in one request. The error of one stands in the place of its reply."""

        async def send() -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipeline:
                for name, *args in calls:
                    pipeline.execute_command(name, *args)
                return await pipeline.execute(raise_on_error=False)

        return cast("list[Any]", await self._store.guarded(send)) if calls else []

    async def now_ms(self) -> int:
        """The store's time, in ms since the epoch."""
        seconds, micros = cast("tuple[int, int]", await self._store.guarded(self._client.time))
        return seconds * 1000 + micros // 1000

    async def number(self) -> int:
        """How many tasks there are, those that have just expired included."""
        return sum([int(await self._ask("zcard", index)) for index in (self._keys.expiry, self._keys.ended)])

    async def pages(self) -> AsyncGenerator[list[InspectedTask]]:
        """All tasks, in parts: those that expire last first, which are about the newest.

        A task that cannot be read is left out.
        """
        async for members in self._latest(PAGE):
            yield [one for one in await self.tasks(_readable(members)) if one is not None]

    async def _latest(self, number: int) -> AsyncGenerator[list[bytes]]:
        """The members of both indices of tasks, so many at a time: those that expire last first."""
        until: float = inf
        met = set[bytes]()
        """Those that expire at that time and have been given. A task that ends meanwhile is in the other index then."""
        while True:
            found: dict[bytes, float] = {}
            for index in (self._keys.expiry, self._keys.ended):
                at_most = (until, -inf, 0, number + len(met))
                reply = await self._ask("zrevrangebyscore", index, *at_most, withscores=True)
                found |= dict(cast("list[tuple[bytes, float]]", reply))
            part = sorted(found.keys() - met, key=found.__getitem__, reverse=True)[:number]
            if not part:
                return
            yield part
            met = {*part, *met} if found[part[-1]] == until else {*part}
            until = found[part[-1]]

    async def tasks(self, keys: Sequence[str]) -> list[InspectedTask | None]:
        """Tasks by their compound keys. None: it has expired, or cannot be read."""
        refs = [TaskRef.of_key(key) for key in keys]
        replies = await self._together([("HGETALL", self._keys.record(ref.scope, ref.task_id)) for ref in refs])
        return [self._inspected(ref, reply) for ref, reply in zip(refs, replies, strict=True)]

    async def unsigned(self, most: int) -> tuple[int, int]:
        """How many of the newest records this process cannot use because of its encryption keys.

        Args:
            most: How many to look at.

        Returns:
            How many were looked at, and how many cannot be used.
        """
        async with aclosing(self._latest(most)) as latest:
            refs = [TaskRef.of_key(key) for key in _readable(await anext(latest, list[bytes]()))]
        replies = await self._together([("HGETALL", self._keys.record(ref.scope, ref.task_id)) for ref in refs])
        looked, refused = 0, 0
        for ref, reply in zip(refs, replies, strict=True):
            fields = _texts(reply)
            if not fields:
                continue
            looked += 1
            has_keys = self._store.seals.sealing.is_on
            try:
                self._store.seals.record(ref, fields)
                refused += "signature" in fields and not has_keys
            except SealError:
                refused += 1
            except UNREADABLE:
                continue
        return looked, refused

    def _inspected(self, ref: TaskRef, reply: Any) -> InspectedTask | None:
        if isinstance(reply, Exception) or not reply:
            return None
        try:
            fields = _texts(reply)
            record = decode_record(fields, self._openers(ref))
            started = int(fields["started_retries"]) if "started_retries" in fields else None
            return InspectedTask(
                record,
                has_started=started is not None and started >= record.retries,
                is_parked="parked" in fields,
                claimed_retries=None if record.claim is None else int(fields.get("claim_retries") or 0),
                handbacks=int(fields.get("handbacks") or 0),
            )
        except UNREADABLE:
            return None

    def _openers(self, ref: TaskRef) -> Openers:
        """Opens sealed fields, as far as this process can: operators need not have the keys."""
        sealed = self._store.seals.openers(ref)

        def open_message(stored: str) -> str:
            try:
                return sealed.message(stored)
            except SealError:
                return ""

        def open_error(stored: str) -> str:
            try:
                return sealed.error(stored)
            except SealError:
                return f'[{UNOPENED.code}, "{UNOPENED.message}", null]' if is_sealed(stored) else stored

        return Openers(open_error, open_message)

    async def place(self, task: InspectedTask) -> Place:
        """Where a task stands in the indices."""
        record, keys = task.record, self._keys
        channel = keys.channel(record.scope, record.task_id)
        due, unclaimed, rank, followers = await self._together(
            [
                ("ZSCORE", keys.due, record.key),
                ("ZSCORE", keys.unclaimed, record.key),
                ("ZRANK", keys.unclaimed, record.key),
                ("PUBSUB SHARDNUMSUB" if keys.is_sharded else "PUBSUB NUMSUB", channel),
            ]
        )
        now, before_place = await self.now_ms(), await self._store.ahead(record)
        limit = None if before_place is None else self._keys.kind_of_limit(record.waits_in or "")
        return Place(_time(due), _time(unclaimed), _number(rank), _subscribers(followers), now, before_place, limit)

    async def find(self, text: str, *, most: int) -> list[str]:
        """The compound keys of the tasks that a text names.

        Args:
            text: A compound key, a Celery id, a task id, or the beginning of one, as lines of a log show it.
            most: How many to return at most.
        """
        text = text.strip().removesuffix("…")
        if keys := await self._named(text):
            return keys
        if not text or not text.replace("-", "").replace("_", "").isalnum():
            return []
        found: list[str] = []
        for pattern in (f"anon:{text}*", f"auth:*:{text}*"):
            async for key in self._matching(pattern):
                if parse_task_key(key).client_task_id.startswith(text) and key not in found:
                    found.append(key)
                if len(found) >= most:
                    return found
        return found

    async def _matching(self, pattern: str) -> AsyncGenerator[str]:
        """The compound keys of tasks that match a pattern; some perhaps twice."""
        for index in (self._keys.expiry, self._keys.ended):
            cursor: int | None = None
            while cursor != 0:
                reply = await self._ask("zscan", index, cursor or 0, match=pattern, count=SCANNED)
                cursor, members = cast("tuple[int, list[tuple[bytes, float]]]", reply)
                for key in _readable([member for member, _ in members]):
                    yield key

    async def _named(self, text: str) -> list[str]:
        """The compound keys that a text may be, or that a Celery id was made of."""
        if is_shortened(text):
            found = cast("bytes | None", await self._ask("get", self._keys.job_alias(text)))
            return _readable([] if found is None else [found])
        keys = [] if (key := task_key_from_job_id(text)) is None else [key]
        try:
            parse_task_key(text)
        except ValueError:
            return keys
        return list(dict.fromkeys([*keys, text]))

    async def workers(self) -> list[LeasedWorker]:
        """The workers that live, or have missed heartbeats and were not found dead yet."""
        index, keys = self._keys.workers, self._keys
        found = cast("list[tuple[bytes, float]]", await self._ask("zrange", index, 0, PAGE - 1, withscores=True))
        named = [(member.decode(errors="replace"), round(until)) for member, until in found]
        replies = await self._together(
            [
                command
                for worker, _ in named
                for command in (
                    *(("HGETALL", keys.components(worker)), ("SCARD", keys.claims(worker))),
                    ("HGET", keys.slots, worker),
                )
            ]
        )
        return [
            LeasedWorker(worker, until, _texts(components), _number(claims), _slots(slots))
            for (worker, until), components, claims, slots in zip(
                named, replies[::3], replies[1::3], replies[2::3], strict=True
            )
        ]

    async def claimed(self, worker: str, most: int) -> list[str]:
        """Compound keys of jobs that a worker has.

        Args:
            worker: Its name in claims.
            most: How many to return at most; of more, those are any.
        """
        claims = self._keys.claims(worker)
        return _readable(await self._ask("srandmember", claims, most))

    async def has_reaper(self) -> bool:
        """Whether a process is elected that publishes due jobs."""
        return bool(await self._ask("exists", self._keys.reaper))

    async def requeue(self, record: TaskRecord, *, force: bool) -> RequeueVerdict:
        """Make a task's job due, so that the reaper publishes it with its next sweep.

        Args:
            record: The task.
            force: Whether a body that has started and may have had effects is repeated nevertheless.
        """
        return await self._store.run(commands.requeue(self._keys, record, force=force))

    async def question_kinds(self, record: TaskRecord) -> list[str]:
        """The keys of the questions of a task that are open."""
        questions = self._keys.questions(record.scope, record.task_id)
        return sorted(_text(key) for key in await self._ask("hkeys", questions))


async def namespaces_in(store: RedisTaskStore, backend: RedisBackend) -> list[str]:
    """The namespaces whose servers or workers have used a store.

    Args:
        store: Any store of the backend. The names are found with ``SCAN``, which blocks no other client.
        backend: Where the tasks are kept. Each shard of a Redis Cluster is asked.

    Raises:
        StoreUnavailableError: The store did not answer.
    """
    found = set[str]()
    if not backend.is_cluster:
        await _scan_for_namespaces(store, cast(Any, store.client.redis), found)
        return sorted(found)
    await store.guarded(cast(Any, store.client.redis).ping)  # logs and raises where no node answers
    url, seconds = parse(backend.url), backend.timeout_seconds
    for master in (await backend.cluster_view()).masters:
        async with node_client(url, master, backend.credentials, timeout_seconds=seconds) as client:
            await _scan_for_namespaces(store, client, found)
    return sorted(found)


async def _scan_for_namespaces(store: RedisTaskStore, client: Any, found: set[str]) -> None:
    """Add the namespaces that one server has keys of."""
    before, after = store.keys.root_of("*").split("*")
    pattern = f"{before}*{after}:[ew]*[yds]"  # expiry, ended, workers
    cursor = 0
    while True:
        scan = partial(client.scan, cursor, match=pattern, count=SCANNED, _type="ZSET")
        cursor, keys = cast("tuple[int, list[bytes]]", await store.guarded(scan))
        for key in keys:
            root, _, index = _text(key).rpartition(":")
            namespace = root[len(before) :].removesuffix(after)
            if index in ("expiry", "ended", "workers") and namespace and ":" not in namespace:
                found.add(namespace)
        if cursor == 0:
            return


def _readable(members: Sequence[bytes]) -> list[str]:
    """The compound keys among members of an index; the others are left to the processes that use the index."""
    found: list[str] = []
    for member in members:
        try:
            found.append(key_of(member))
        except ValueError:
            continue
    return found


def _texts(reply: Any) -> dict[str, str]:
    """A hash as text. redis-py gives a mapping, or from a pipeline perhaps a flat list."""
    if isinstance(reply, Exception):
        return {}
    if isinstance(reply, dict):
        return {_text(name): _text(value) for name, value in cast("dict[bytes, bytes]", reply).items()}
    return flat_to_mapping(cast("list[bytes]", reply))


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode(errors="replace")


def _time(score: Any) -> int | None:
    return None if score is None or isinstance(score, Exception) else round(float(score))


def _number(reply: Any) -> int:
    return 0 if reply is None or isinstance(reply, Exception) else int(reply)


def _slots(reply: Any) -> int | None:
    return int(reply) if isinstance(reply, bytes) and reply.isdigit() and int(reply) else None


def _subscribers(reply: Any) -> int:
    if isinstance(reply, Exception) or not reply:
        return 0
    return int(reply[-1][-1] if isinstance(reply[-1], list | tuple) else reply[-1])
