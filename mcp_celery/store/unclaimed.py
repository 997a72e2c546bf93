"""Jobs that no worker has received, and workers that may have unread messages, in Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

from mcp_celery.engine import TaskRef
from mcp_celery.engine.recovery.model import TRYING_AGAIN_LOST, PublishedJob, RecoveryPolicy, Verdict
from mcp_celery.errors import StoredDataError
from mcp_celery.store.codec import PUBLISHED, decode_published
from mcp_celery.store.commands import flat, moved
from mcp_celery.store.records import RedisTaskStore
from mcp_celery.store.scripts import Command
from mcp_celery.store.unreadable import UNREADABLE, key_of

Found = TypeVar("Found")

SAMPLED_WORKERS: Final = 50
"""Of how many workers claimed jobs are looked at."""
SAMPLED_CLAIMS: Final = 4
"""How many of each."""


class RedisUnclaimed:
    """The part of :class:`mcp_celery.store.recovery.RedisRecovery` that finds lost jobs.

    Args:
        store: Whose connections are used.
    """

    def __init__(self, store: RedisTaskStore) -> None:
        self._store = store
        self._keys = store.keys
        self._known: dict[str, PublishedJob] = {}
        """The unclaimed jobs that the last sweep saw, whose records need not be read again."""

    async def jobs(self, members: Sequence[bytes]) -> Sequence[PublishedJob]:
        """The jobs of members of the index, each with its time behind it. A task that is gone has none."""
        since = dict(zip(members[::2], members[1::2], strict=True))

        def read(member: bytes) -> tuple[str, int]:
            try:
                return key_of(member), round(float(since[member]))
            except OverflowError as error:
                raise ValueError("its time is not a number") from error

        index = self._keys.unclaimed
        at_ms = dict(await readable(self._store, "ZREM", index, [*since], read))
        self._known = {key: self._known[key] for key in at_ms if key in self._known}
        unknown = [key for key in at_ms if key not in self._known]
        gone: list[str] = []
        forged: list[str] = []
        for key, reply in zip(unknown, await replies_of(self._store, unknown, PUBLISHED), strict=True):
            if isinstance(reply, list) and reply[0] is None:
                gone.append(key)
            elif (job := _job(reply)) is None or job.key != key:
                forged.append(key)
            else:
                self._known[key] = job
        if gone:
            await self._store.on_index("ZREM", index, *gone)
        await self._store.remove("ZREM", index, forged, "its record cannot be read, or is another task's")
        return [replace(self._known[key], at_ms=at) for key, at in at_ms.items() if key in self._known]

    async def unread_since(self, oldest: Sequence[bytes]) -> int | None:
        """Since when the worker may have unread messages that has them for longest. A worker that is gone has none."""
        if not oldest:
            return None
        worker, since = oldest
        if await self._store.on_index("ZSCORE", self._keys.workers, worker) is None:
            await self._store.on_index("ZREM", self._keys.unread, worker)
            # Until the next sweep nothing is known of the others.
        try:
            return round(float(since))
        except OverflowError:
            return None

    async def some_claimed(self) -> Sequence[PublishedJob]:
        """A sample of the jobs that live workers have."""
        keys = self._keys
        command: Command[list[bytes]] = Command(
            "claimed", [keys.workers], [keys.claims(""), SAMPLED_WORKERS, SAMPLED_CLAIMS], lambda reply: reply
        )
        claimed: list[str] = []
        for member in await self._store.run(command):
            try:
                claimed.append(key_of(member))
            except ValueError:
                continue  # it is removed when its worker is gone
        found = (_job(reply) for reply in await replies_of(self._store, claimed, PUBLISHED))
        return [job for job in found if job is not None and job.key in claimed]

    async def lost(self, job: PublishedJob, policy: RecoveryPolicy) -> Verdict:
        """Decide on a task whose job the broker has lost. Nothing is to be done for one whose record cannot be read."""
        keys, ref = self._keys, TaskRef.of_key(job.key)
        failed = flat(self._store.seals.change(ref, policy.lost_too_often))

        def parse(reply: Any) -> Verdict:
            return reply.decode()

        command = Command(
            "lost",
            [*moved(keys, ref), keys.unclaimed, keys.due],
            [job.key, job.at_ms, policy.max_redeliveries, TRYING_AGAIN_LOST, keys.claims(""), *failed],
            parse,
        )
        try:
            return await self._store.run(command)
        except StoredDataError as error:
            await self._store.remove("ZREM", keys.unclaimed, [job.key], error.reason)
            return "nothing"


def _job(reply: Any) -> PublishedJob | None:
    """The job of a record's fields :data:`PUBLISHED`; None where they cannot be read."""
    try:
        return None if isinstance(reply, Exception) else decode_published(reply)
    except UNREADABLE:
        return None


async def readable(
    store: RedisTaskStore, command: str, index: str, members: Sequence[bytes], read: Callable[[bytes], Found]
) -> list[Found]:
    """The members of an index. Those that cannot be read are removed from it.

    Args:
        store: Whose connections are used.
        command: What removes a member: ZREM, SREM or HDEL.
        index: The index.
        members: Its members.
        read: Reads one; raises ``ValueError`` where it cannot be read.
    """
    found: list[Found] = []
    unreadable: list[bytes] = []
    for member in members:
        try:
            found.append(read(member))
        except ValueError:
            unreadable.append(member)
    await store.remove(command, index, unreadable)
    return found


async def replies_of(store: RedisTaskStore, keys: Sequence[str], names: Sequence[str]) -> list[Any]:
    """What Redis answers for fields of the records of several tasks: their values, or an error.

    Args:
        store: Whose connections are used.
        keys: Compound keys of the tasks.
        names: The fields.
    """
    if not keys:
        return []

    async def read() -> list[Any]:
        # Made anew for each try: it forgets its commands when it has failed.
        async with store.client.redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                ref = TaskRef.of_key(key)
                pipeline.hmget(store.keys.record(ref.scope, ref.task_id), list(names))
            return await pipeline.execute(raise_on_error=False)

    return cast("list[Any]", await store.guarded(read))
