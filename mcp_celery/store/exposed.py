"""Which tasks of exposed jobs are open, in Redis."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from mcp_celery.engine import DueTasks, TaskRecord, TaskRef
from mcp_celery.errors import StoredDataError
from mcp_celery.formats import NewerFormatError
from mcp_celery.redis_keys import RedisKeys
from mcp_celery.store.codec import decode_record, flat_to_mapping
from mcp_celery.store.commands import Command
from mcp_celery.store.records import RedisTaskStore
from mcp_celery.store.unreadable import UNREADABLE

logger = logging.getLogger(__name__)


class RedisExposed:
    """Fulfils :class:`mcp_celery.engine.OpenTasks`.

    Args:
        store: Whose connections are used.
    """

    def __init__(self, store: RedisTaskStore) -> None:
        self._store = store
        self._keys: RedisKeys = store.keys

    async def due(self, interval_ms: int, limit: int) -> DueTasks:
        """The tasks that nobody has looked at for an interval; they are the caller's for the next."""
        unreadable: list[bytes] = []

        def parse(reply: Any) -> DueTasks:
            is_open, found = cast("tuple[int, list[Any]]", reply)
            records: list[TaskRecord] = []
            for key, flat in zip(found[::2], found[1::2], strict=True):
                try:
                    records.append(
                        decode_record(flat_to_mapping(flat), self._store.seals.openers(TaskRef.of_key(key.decode())))
                    )
                except NewerFormatError as error:
                    logger.error("left a task to processes of a later release: %s", error)
                except UNREADABLE:
                    unreadable.append(key)
            return DueTasks(is_open - len(unreadable), records)

        command = Command(
            "watch",
            [self._keys.exposed],
            [interval_ms, limit, self._keys.all_records],
            parse,
        )
        found = await self._store.run(command)
        await self._store.remove("ZREM", self._keys.exposed, unreadable)
        return found

    async def hurry(self, keys: Sequence[str]) -> None:
        """Let tasks, given by their compound keys, be due at once; what is no open one of exposed jobs is ignored."""
        index = self._keys.exposed
        with suppress(StoredDataError):  # it is no index: the next look, which follows, says so and deletes it
            await self._store.guarded(self._store.client.zadd(index, dict.fromkeys(keys, 0), xx=True))
