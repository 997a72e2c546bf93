"""Storage of recovery in Redis: heartbeats, claims, tasks that expire, jobs that are due."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from typing_extensions import override

from mcp_celery.engine import MOVES, TaskRef
from mcp_celery.engine.ports import RecoveryStore
from mcp_celery.engine.recovery.model import (
    BATCH,
    PLACES_BATCH,
    PUBLISHING_MS,
    TRYING_AGAIN,
    UNCLAIMED_BATCH,
    WAITING_BATCH,
    Expiring,
    Loss,
    PublishedJob,
    RecoveryPolicy,
    StoreCounts,
    Sweep,
    Verdict,
)
from mcp_celery.engine.store_mark import StoreMark
from mcp_celery.errors import StoredDataError
from mcp_celery.keys import Hidden
from mcp_celery.store import commands
from mcp_celery.store.codec import decode_work, leg_number, one_of
from mcp_celery.store.commands import asked, flat, moved, next_of
from mcp_celery.store.keys import RedisKeys
from mcp_celery.store.records import RedisTaskStore
from mcp_celery.store.replies import NextScript
from mcp_celery.store.scripts import Command
from mcp_celery.store.unclaimed import RedisUnclaimed, readable, replies_of
from mcp_celery.store.unreadable import UNREADABLE, key_of

AHEAD = 10_000
"""The most tasks to remember that are about to expire, or just have: with more, some are not revoked when they do."""
TRIMMED = 5_000
"""The most tasks that one sweep takes off the index of those that have ended with a stored result: a thousand a second
with the usual pause between sweeps, for which Redis takes some milliseconds.
"""
FIELDS = ["leg", "status", "claim_worker", "work", "hidden", "attempt", "declared_as"]
"""Of a record: what ``remember`` of common.lua keeps."""


class RedisRecovery(RecoveryStore):
    """Fulfils :class:`mcp_celery.engine.RecoveryStore`.

    Args:
        store: Whose connections are used.
    """

    def __init__(self, store: RedisTaskStore) -> None:
        self._store = store
        self._keys = store.keys
        self._expected = frozenset[str]()
        """The tasks that the last sweep saw expire, whose keys need not be taken apart again."""
        self._unclaimed = RedisUnclaimed(store)
        self._moves = 0

    @override
    async def beat(
        self,
        worker: str,
        lease_ms: int,
        components: Mapping[str, str] | None = None,
        unread_ms: int = 0,
        slots: int = 0,
    ) -> None:
        keys = [
            *(self._keys.workers, self._keys.components(worker), self._keys.unread, self._keys.slots),
            self._keys.turns,
        ]
        advertised = flat(dict(components or {}))
        await self._store.run(Command("beat", keys, [worker, lease_ms, unread_ms, slots, *advertised], lambda _: None))

    @override
    async def mark(self, new: StoreMark | None = None) -> StoreMark | None:
        return await self._store.run(commands.mark(self._keys, new))

    @override
    async def sweep(self, reaper: str, policy: RecoveryPolicy, skipped: int = 0) -> Sweep | None:
        keys = self._keys
        about = [policy.lease_ms, policy.lease_ms, PUBLISHING_MS, BATCH, AHEAD]
        command: Command[Any] = Command(
            "sweep",
            [
                *(keys.reaper, keys.workers, keys.expiry, keys.due),
                *(keys.remembered, keys.unclaimed, keys.unread, keys.attended, keys.waiting, keys.slots, keys.turns),
                keys.ended,
            ],
            [reaper, *about, policy.publishing_ms, skipped, UNCLAIMED_BATCH, WAITING_BATCH, TRIMMED],
            lambda reply: reply,
        )
        reply = await self._store.run(command)
        if reply is None:
            return None
        moves, self._moves = self._moves, self._store.client.moves
        now, *lists = cast("tuple[int, *tuple[list[bytes], ...]]", reply)
        dead, over, soon, due, unclaimed, unread, abandoned, waiting_members = lists
        expiring = [*over, *soon]
        left: dict[str, int] = {}
        unreadable: list[bytes] = []
        for member, at in zip(expiring[::2], expiring[1::2], strict=True):
            try:
                key = member.decode()
                left[key if key in self._expected else key_of(member)] = int(float(at)) - now
            except (ValueError, OverflowError):
                unreadable.append(member)
        self._expected = frozenset(left)
        await self._store.remove("ZREM", keys.expiry, unreadable)
        workers = await readable(self._store, "ZREM", keys.workers, dead, bytes.decode)
        if waiting_members:
            await self._look_at_waiting(waiting_members)
            due = await self._store.run(_overdue(keys))
        due_keys = await readable(self._store, "ZREM", keys.due, due, key_of)
        waiting = await self._unclaimed.jobs(unclaimed)
        unread_since = await self._unclaimed.unread_since(unread)
        left_alone = await readable(self._store, "ZREM", keys.attended, abandoned, key_of)
        return Sweep(
            workers,
            await self._expiring(left),
            due_keys,
            waiting,
            unread_since,
            now,
            left_alone,
            after_failover=self._moves != moves,
        )

    @override
    async def overdue(self) -> Sequence[str]:
        due = await self._store.run(_overdue(self._keys))
        return await readable(self._store, "ZREM", self._keys.due, due, key_of)

    async def _look_at_waiting(self, members: Sequence[bytes]) -> None:
        """Look at tasks that wait for a place or a turn, and at some that have one.

        Keys may have been lost, and tasks may have expired.
        """
        keys = self._keys
        waiting = await readable(self._store, "ZREM", keys.waiting, members, key_of)
        look: Command[list[bytes]] = Command(
            "look",
            [keys.waiting, keys.turns],
            [keys.root, *waiting],
            lambda reply: reply,
            more=[self._record(key) for key in waiting],
        )
        for limit in await self._store.run(look):
            name = limit.decode(errors="replace")
            some = await self._store.on_index("ZRANDMEMBER", name, str(PLACES_BATCH))
            holders = await readable(self._store, "ZREM", name, some, key_of)
            if holders:
                records = [self._record(key) for key in holders]
                await self._store.run(Command("held", [name, *records], holders, lambda _: None))
            script = "grant_turns" if name == keys.window else "grant_places"
            await self._store.run(next_of(keys, NextScript(script, limit, (), ())))

    def _record(self, key: str) -> str:
        ref = TaskRef.of_key(key)
        return self._keys.record(ref.scope, ref.task_id)

    @override
    async def is_due(self, key: str) -> bool:
        return await self._store.on_index("ZSCORE", self._keys.due, key) is not None

    @override
    async def some_claimed(self) -> Sequence[PublishedJob]:
        return await self._unclaimed.some_claimed()

    @override
    async def lost(self, job: PublishedJob, policy: RecoveryPolicy) -> Verdict:
        return await self._unclaimed.lost(job, policy)

    async def _expiring(self, left: dict[str, int]) -> Sequence[Expiring]:
        """What is known of tasks that expire, by how many ms are left."""
        if not left:
            return ()
        client = cast(Any, self._store.client.redis)
        texts = cast(
            "list[bytes | None]", await self._store.guarded(lambda: client.hmget(self._keys.remembered, [*left]))
        )
        found: dict[str, Expiring] = {}
        unreadable: list[str] = []
        for key, text in zip(left, texts, strict=True):
            if text is None:
                continue
            try:
                found[key] = _remembered(key, left[key], text)
            except UNREADABLE:
                unreadable.append(key)
        await self._store.remove("HDEL", self._keys.remembered, unreadable)
        if unknown := [key for key in left if key not in found]:
            found |= await self._of_records(unknown, left)
        return [found[key] for key in left]

    async def _of_records(self, unknown: Sequence[str], left: dict[str, int]) -> dict[str, Expiring]:
        """The same of tasks that 0.1.0 created, which kept it in their records alone, and of those of which what is
        remembered cannot be read.
        """
        found: dict[str, Expiring] = {}
        for key, reply in zip(unknown, await replies_of(self._store, unknown, FIELDS), strict=True):
            try:
                found[key] = _of_record(key, left[key], reply)
            except UNREADABLE:
                # Nothing is known of it: its results are forgotten when its time is over, and no job is revoked.
                found[key] = Expiring(key, left[key])
        return found

    @override
    async def resign(self, reaper: str) -> None:
        if await self._store.on_index("GET", self._keys.reaper) == reaper.encode():
            await self._store.on_index("DEL", self._keys.reaper)

    @override
    async def claimed(self, worker: str) -> Sequence[str]:
        claims = self._keys.claims(worker)
        return await readable(self._store, "SREM", claims, await self._store.on_index("SMEMBERS", claims), key_of)

    @override
    async def recover(
        self, key: str, worker: str, loss: Loss, policy: RecoveryPolicy, *, before_ms: int = 0
    ) -> Verdict:
        keys, ref = self._keys, TaskRef.of_key(key)
        in_work, too_often = (
            flat(self._store.seals.change(ref, change)) for change in (policy.died_in_work, policy.died_too_often)
        )

        def parse(reply: Any) -> Verdict:
            return reply.decode()

        command = Command(
            "recover",
            [*moved(keys, ref), keys.workers, keys.claims(worker), keys.due, *asked(keys, ref)],
            [worker, key, loss, before_ms, policy.max_redeliveries, TRYING_AGAIN, len(in_work), *in_work, *too_often],
            parse,
        )
        try:
            return await self._store.run(command)
        except StoredDataError as error:
            await self._store.remove("SREM", keys.claims(worker), [key], error.reason)
            return "nothing"

    @override
    async def bury(self, worker: str, *, died: bool = False) -> bool:
        keys = [
            *(self._keys.workers, self._keys.components(worker), self._keys.unread, self._keys.slots),
            self._keys.claims(worker),
        ]
        return await self._store.run(Command("bury", keys, [worker, int(died)], lambda reply: reply == 1))

    @override
    async def forget_due(self, key: str) -> None:
        await self._store.on_index("ZREM", self._keys.due, key)

    @override
    async def drop_due(self, key: str, reason: str) -> None:
        await self._store.remove("ZREM", self._keys.due, [key], reason)

    @override
    async def attended_until_ms(self, key: str) -> int | None:
        until = await self._store.on_index("ZSCORE", self._keys.attended, key)
        try:
            return None if until is None else round(float(until))
        except OverflowError:
            return 0  # this package writes no infinite one

    @override
    async def forget_attended(self, key: str) -> None:
        await self._store.on_index("ZREM", self._keys.attended, key)

    @override
    async def forget(self, expired: Sequence[Expiring]) -> None:
        claims: dict[str, list[str]] = {}
        for one in expired:
            if one.worker is not None:
                claims.setdefault(self._keys.claims(one.worker), []).append(one.key)
        keys = [one.key for one in expired]
        await self._store.on_index("ZREM", self._keys.expiry, *keys)
        await self._store.on_index("HDEL", self._keys.remembered, *keys)
        await self._store.on_index("ZREM", self._keys.unclaimed, *keys)
        for index, held in claims.items():
            await self._store.on_index("SREM", index, *held)

    @override
    async def counts(self) -> StoreCounts:
        keys, client = self._keys, cast(Any, self._store.client.redis)

        async def ask() -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                pipe.time().zrange(keys.workers, 0, -1, withscores=True)
                for index in (keys.unclaimed, keys.due, keys.exposed, keys.webhooks, keys.waiting):
                    pipe.zcard(index)
                return await pipe.execute()

        (seconds, microseconds), workers, queued, due, exposed, webhooks, waiting = await self._store.guarded(ask)
        now = seconds * 1000 + microseconds // 1000
        names: list[str] = [name.decode(errors="replace") for name, _ in workers]

        async def ask_claims() -> list[int]:
            async with client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.scard(keys.claims(name))
                return await pipe.execute()

        claimed = sum(await self._store.guarded(ask_claims)) if names else 0
        live = sum(until > now for _, until in workers)
        return StoreCounts(queued, claimed, due, exposed, live, webhooks, waiting)


def _overdue(keys: RedisKeys) -> Command[list[bytes]]:
    return Command("overdue", [keys.due], [PUBLISHING_MS, BATCH], lambda reply: reply)


def _remembered(key: str, left_ms: int, text: bytes) -> Expiring:
    """What ``remember`` of common.lua keeps of a task; it writes false for what there is not."""
    # An earlier release wrote only the first four or five, and whether the task was open in place of its status.
    leg, status, worker, work, *later = cast("list[Any]", json.loads(text))
    hidden, attempt, declared_as = (*later, None, None, None)[:3]
    if isinstance(status, bool):
        status = "working" if status else None
    return Expiring(
        key,
        left_ms,
        leg_number(leg),
        None if status is None else one_of(MOVES, status),
        _text(worker or None),
        decode_work(work or None),
        Hidden(int(hidden or 0)),
        int(attempt or 1),
        _text(declared_as or None),
    )


def _of_record(key: str, left_ms: int, reply: Any) -> Expiring:
    """The same of a record's fields, or of the error that Redis has given instead."""
    texts: list[str | None] = [None if field is None else field.decode() for field in reply]
    leg, status, worker, work, hidden, attempt, declared_as = texts
    return Expiring(
        key,
        left_ms,
        leg_number(int(leg or 1)),
        None if status is None else one_of(MOVES, status),
        worker,
        decode_work(work),
        Hidden(int(hidden or 0)),
        int(attempt or 1),
        declared_as,
    )


def _text(name: object) -> str | None:
    if name is not None and not isinstance(name, str):
        raise ValueError("a name is not a text")
    return name
