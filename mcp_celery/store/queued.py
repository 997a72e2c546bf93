"""Which jobs wait in the broker, as far as Redis knows it, and what live workers take."""

from __future__ import annotations

from typing import Any, cast

from typing_extensions import override

from mcp_celery.engine.ports import QueuedJobs
from mcp_celery.engine.read_models import Queued
from mcp_celery.store.records import RedisTaskStore
from mcp_celery.store.unreadable import key_of


class RedisQueuedJobs(QueuedJobs):
    """Fulfils :class:`mcp_celery.engine.ports.QueuedJobs`. Reading changes nothing.

    Args:
        store: Whose connections are used.
    """

    def __init__(self, store: RedisTaskStore) -> None:
        self._store = store

    @override
    async def queued(self, limit: int) -> Queued:
        keys = self._store.keys

        async def read() -> list[Any]:
            async with self._store.client.redis.pipeline(transaction=False) as pipeline:
                pipeline.time()
                pipeline.zrange(keys.workers, 0, -1, withscores=True)
                pipeline.zrange(keys.unclaimed, 0, limit)
                return await pipeline.execute(raise_on_error=False)

        time, workers, members = await self._store.guarded(read)
        live = _live(time, workers)

        async def read_components() -> list[Any]:
            async with self._store.client.redis.pipeline(transaction=False) as pipeline:
                for worker in live:
                    pipeline.hkeys(keys.components(worker))
                return await pipeline.execute(raise_on_error=False)

        components = cast("list[Any]", await self._store.guarded(read_components) if live else [])
        names = [cast("list[bytes]", found) for found in components if not isinstance(found, Exception)]
        fingerprints = frozenset(one.decode(errors="replace") for found in names for one in found)
        waiting = _readable(members)
        return Queued(waiting[:limit], fingerprints, is_cut=len(waiting) > limit)


def _live(time: Any, workers: Any) -> list[str]:
    """The workers whose heartbeat holds. An index of another type is left to the processes that recover."""
    if isinstance(time, Exception) or isinstance(workers, Exception):
        return []
    seconds, micros = cast("tuple[int, int]", time)
    now = seconds * 1000 + micros // 1000
    return [
        member.decode(errors="replace") for member, until in cast("list[tuple[bytes, float]]", workers) if until > now
    ]


def _readable(members: Any) -> list[str]:
    found: list[str] = []
    for member in cast("list[bytes]", [] if isinstance(members, Exception) else members):
        try:
            found.append(key_of(member))
        except ValueError:
            continue
    return found
