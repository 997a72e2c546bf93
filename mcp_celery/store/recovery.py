"""What recovery keeps in Redis: heartbeats, claims, tasks that expire, jobs that are due."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

from mcp_celery.engine import OPEN, TaskRef
from mcp_celery.engine.recovery import BATCH, Expiring, Loss, RecoveryPolicy, Sweep, Verdict
from mcp_celery.store.codec import decode_work
from mcp_celery.store.commands import Command, asked, fields_of, moved, noted
from mcp_celery.store.records import RedisTaskStore

STATUS_MESSAGE = "Trying again: the worker that had the job has died"
AHEAD = 10_000
"""The most tasks to remember that are about to expire, or just have: with more, some are not revoked when they do."""
PUBLISHING_MS = 10_000
"""Whoever makes a job due publishes it at once; after this time the reaper takes it that nobody did."""


class RedisRecovery:
    """Fulfils :class:`mcp_celery.engine.recovery.RecoveryStore`.

    Args:
        store: Whose connections are used.
    """

    def __init__(self, store: RedisTaskStore) -> None:
        self._store = store
        self._keys = store.keys

    async def beat(self, worker: str, lease_ms: int) -> None:
        """Say that a worker lives."""
        await self._store.run(Command("beat", [self._keys.workers], [worker, lease_ms], lambda _: None))

    async def sweep(self, reaper: str, policy: RecoveryPolicy) -> Sweep | None:
        """What there is to do. None: another process reaps."""
        keys = self._keys
        command: Command[Any] = Command(
            "sweep",
            [keys.reaper, keys.workers, keys.expiry, keys.due],
            [reaper, policy.lease_ms, policy.lease_ms, PUBLISHING_MS, BATCH, AHEAD],
            lambda reply: reply,
        )
        reply = await self._store.run(command)
        if reply is None:
            return None
        now, dead, over, soon, due = cast("tuple[int, list[bytes], list[bytes], list[bytes], list[bytes]]", reply)
        expiring = [*over, *soon]
        left = {key.decode(): int(float(at)) - now for key, at in zip(expiring[::2], expiring[1::2], strict=True)}
        return Sweep(_texts(dead), await self._expiring(left), _texts(due))

    async def _expiring(self, left: dict[str, int]) -> Sequence[Expiring]:
        """What is known of tasks that expire, by how many ms are left."""
        if not left:
            return ()
        client = cast(Any, self._store.client)
        texts = cast("list[bytes | None]", await self._store.guarded(client.hmget(self._keys.remembered, [*left])))
        found = {key: _remembered(key, left[key], text) for key, text in zip(left, texts, strict=True) if text}
        if unknown := [key for key in left if key not in found]:
            found |= await self._of_records(unknown, left)
        return [found[key] for key in left]

    async def _of_records(self, unknown: Sequence[str], left: dict[str, int]) -> dict[str, Expiring]:
        """The same of tasks that 0.1.0 created, which kept it in their records alone."""
        pipeline = self._store.client.pipeline(transaction=False)
        for key in unknown:
            ref = TaskRef.of_key(key)
            pipeline.hmget(self._keys.record(ref.scope, ref.task_id), ["leg", "status", "claim_worker", "work"])
        records = cast("list[list[bytes | None]]", await self._store.guarded(pipeline.execute()))
        texts = [[None if field is None else field.decode() for field in record] for record in records]
        return {
            key: Expiring(key, left[key], int(leg or 1), status in OPEN, worker, decode_work(work))
            for key, (leg, status, worker, work) in zip(unknown, texts, strict=True)
        }

    async def resign(self, reaper: str) -> None:
        """Let another process reap at once."""
        if await self._store.guarded(self._store.client.get(self._keys.reaper)) == reaper.encode():
            await self._store.guarded(self._store.client.delete(self._keys.reaper))

    async def claimed(self, worker: str) -> Sequence[str]:
        """Compound keys of the tasks whose job a worker has."""
        client = cast(Any, self._store.client)
        return _texts(await self._store.guarded(client.smembers(self._keys.claims(worker))))

    async def recover(
        self, key: str, worker: str, loss: Loss, policy: RecoveryPolicy, *, before_ms: int = 0
    ) -> Verdict:
        """Decide on a task whose job a worker had."""
        keys, ref = self._keys, TaskRef.of_key(key)
        in_work, too_often = fields_of(policy.died_in_work), fields_of(policy.died_too_often)

        def parse(reply: Any) -> Verdict:
            verdict = cast(Verdict, reply.decode())
            noted(ref, policy.died_in_work, accepted=verdict == "failed")
            return verdict

        return await self._store.run(
            Command(
                "recover",
                [*moved(keys, ref), keys.workers, keys.claims(worker), keys.due, *asked(keys, ref)],
                [
                    worker,
                    key,
                    loss,
                    before_ms,
                    policy.max_redeliveries,
                    STATUS_MESSAGE,
                    len(in_work),
                    *in_work,
                    *too_often,
                ],
                parse,
            )
        )

    async def bury(self, worker: str) -> None:
        """Forget a worker."""
        await self._store.guarded(self._store.client.zrem(self._keys.workers, worker))

    async def forget_due(self, key: str) -> None:
        """A job that was due is published."""
        await self._store.guarded(self._store.client.zrem(self._keys.due, key))

    async def forget(self, expired: Sequence[Expiring]) -> None:
        """Forget that tasks were to expire, and the claims on them."""
        pipeline = self._store.client.pipeline(transaction=False)
        pipeline.zrem(self._keys.expiry, *(one.key for one in expired))
        cast(Any, pipeline).hdel(self._keys.remembered, *(one.key for one in expired))
        for one in expired:
            if one.worker is not None:
                cast(Any, pipeline).srem(self._keys.claims(one.worker), one.key)
        await self._store.guarded(pipeline.execute())


def _texts(found: Iterable[bytes]) -> list[str]:
    return [one.decode() for one in found]


def _remembered(key: str, left_ms: int, text: bytes) -> Expiring:
    """What ``remember`` of common.lua keeps of a task; it writes false for what there is not."""
    leg, is_open, worker, work, *rest = cast("list[Any]", json.loads(text))
    hides_id = bool(rest and rest[0])  # releases before did not write it
    return Expiring(key, left_ms, leg, is_open, worker or None, decode_work(work or None), hides_id)
