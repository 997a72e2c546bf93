"""Which tasks of exposed jobs are open, in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from mcp_celery.engine.watcher import DueTasks
from mcp_celery.redis_keys import RedisKeys
from mcp_celery.store.codec import decode_record, flat_to_mapping
from mcp_celery.store.commands import Command
from mcp_celery.store.records import RedisTaskStore


class RedisExposed:
    """Fulfils :class:`mcp_celery.engine.watcher.OpenTasks`.

    Args:
        store: Whose connections are used.
    """

    def __init__(self, store: RedisTaskStore) -> None:
        self._store = store
        self._keys: RedisKeys = store.keys

    async def due(self, interval_ms: int, limit: int) -> DueTasks:
        """The tasks that nobody has looked at for an interval; they are the caller's for the next."""

        def parse(reply: Any) -> DueTasks:
            is_open, records = cast("tuple[int, list[list[bytes]]]", reply)
            return DueTasks(is_open, [decode_record(flat_to_mapping(one)) for one in records])

        command = Command(
            "watch",
            [self._keys.exposed],
            [interval_ms, limit, self._keys.all_records],
            parse,
        )
        return await self._store.run(command)

    async def hurry(self, keys: Sequence[str]) -> None:
        """Let tasks, given by their compound keys, be due at once; what is no open one of exposed jobs is ignored."""
        index = self._keys.exposed
        await self._store.guarded(self._store.client.zadd(index, dict.fromkeys(keys, 0), xx=True))
