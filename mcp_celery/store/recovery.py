"""What recovery keeps in Redis: heartbeats, claims, tasks that expire, jobs that are due."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

from mcp_celery.engine import MOVES, TaskRef
from mcp_celery.engine.recovery import (
    BATCH,
    PUBLISHING_MS,
    TRYING_AGAIN,
    Expiring,
    Loss,
    RecoveryPolicy,
    Sweep,
    Verdict,
)
from mcp_celery.errors import StoredDataError
from mcp_celery.keys import Hidden
from mcp_celery.store.codec import decode_work, leg_number, one_of
from mcp_celery.store.commands import Command, asked, flat, moved
from mcp_celery.store.records import RedisTaskStore
from mcp_celery.store.unreadable import UNREADABLE, key_of

AHEAD = 10_000
"""The most tasks to remember that are about to expire, or just have: with more, some are not revoked when they do."""
FIELDS = ["leg", "status", "claim_worker", "work", "hidden", "attempt", "declared_as"]
"""Of a record: what ``remember`` of common.lua keeps."""


class RedisRecovery:
    """Fulfils :class:`mcp_celery.engine.RecoveryStore`.

    Args:
        store: Whose connections are used.
    """

    def __init__(self, store: RedisTaskStore) -> None:
        self._store = store
        self._keys = store.keys
        self._expected = frozenset[str]()
        """The tasks that the last sweep saw expire, whose keys need not be taken apart again."""

    async def beat(self, worker: str, lease_ms: int) -> None:
        """Say that a worker lives."""
        await self._store.run(Command("beat", [self._keys.workers], [worker, lease_ms], lambda _: None))

    async def sweep(self, reaper: str, policy: RecoveryPolicy) -> Sweep | None:
        """What there is to do. None: another process reaps."""
        keys = self._keys
        command: Command[Any] = Command(
            "sweep",
            [keys.reaper, keys.workers, keys.expiry, keys.due, keys.remembered],
            [reaper, policy.lease_ms, policy.lease_ms, PUBLISHING_MS, BATCH, AHEAD],
            lambda reply: reply,
        )
        reply = await self._store.run(command)
        if reply is None:
            return None
        now, dead, over, soon, due = cast("tuple[int, list[bytes], list[bytes], list[bytes], list[bytes]]", reply)
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
        workers = await self._readable("ZREM", keys.workers, dead, bytes.decode)
        due_keys = await self._readable("ZREM", keys.due, due, key_of)
        return Sweep(workers, await self._expiring(left), due_keys)

    async def _readable(
        self, command: str, index: str, members: Sequence[bytes], read: Callable[[bytes], str]
    ) -> list[str]:
        """The members of an index. Those that cannot be read are removed from it."""
        found: list[str] = []
        unreadable: list[bytes] = []
        for member in members:
            try:
                found.append(read(member))
            except ValueError:
                unreadable.append(member)
        await self._store.remove(command, index, unreadable)
        return found

    async def _expiring(self, left: dict[str, int]) -> Sequence[Expiring]:
        """What is known of tasks that expire, by how many ms are left."""
        if not left:
            return ()
        client = cast(Any, self._store.client)
        texts = cast("list[bytes | None]", await self._store.guarded(client.hmget(self._keys.remembered, [*left])))
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
        pipeline = self._store.client.pipeline(transaction=False)
        for key in unknown:
            ref = TaskRef.of_key(key)
            pipeline.hmget(self._keys.record(ref.scope, ref.task_id), FIELDS)
        replies = cast("list[Any]", await self._store.guarded(pipeline.execute(raise_on_error=False)))
        found: dict[str, Expiring] = {}
        for key, reply in zip(unknown, replies, strict=True):
            try:
                found[key] = _of_record(key, left[key], reply)
            except UNREADABLE:
                # Nothing is known of it: its results are forgotten when its time is over, and no job is revoked.
                found[key] = Expiring(key, left[key])
        return found

    async def resign(self, reaper: str) -> None:
        """Let another process reap at once."""
        if await self._store.on_index("GET", self._keys.reaper) == reaper.encode():
            await self._store.on_index("DEL", self._keys.reaper)

    async def claimed(self, worker: str) -> Sequence[str]:
        """Compound keys of the tasks whose job a worker has."""
        claims = self._keys.claims(worker)
        return await self._readable("SREM", claims, await self._store.on_index("SMEMBERS", claims), key_of)

    async def recover(
        self, key: str, worker: str, loss: Loss, policy: RecoveryPolicy, *, before_ms: int = 0
    ) -> Verdict:
        """Decide on a task whose job a worker had. Nothing is to be done for one whose record cannot be read."""
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

    async def bury(self, worker: str) -> None:
        """Forget a worker."""
        await self._store.on_index("ZREM", self._keys.workers, worker)

    async def forget_due(self, key: str) -> None:
        """A job that was due is published."""
        await self._store.on_index("ZREM", self._keys.due, key)

    async def drop_due(self, key: str, reason: str) -> None:
        """A job that is due cannot be published, because what is kept of its task cannot be read."""
        await self._store.remove("ZREM", self._keys.due, [key], reason)

    async def forget(self, expired: Sequence[Expiring]) -> None:
        """Forget that tasks were to expire, and the claims on them."""
        claims: dict[str, list[str]] = {}
        for one in expired:
            if one.worker is not None:
                claims.setdefault(self._keys.claims(one.worker), []).append(one.key)
        keys = [one.key for one in expired]
        await self._store.on_index("ZREM", self._keys.expiry, *keys)
        await self._store.on_index("HDEL", self._keys.remembered, *keys)
        for index, held in claims.items():
            await self._store.on_index("SREM", index, *held)


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
        raise ValueError("a name is no text")
    return name
