"""Which tasks of exposed jobs are open, in Redis."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

from typing_extensions import override

from mcp_celery.common.formats import NewerFormatError
from mcp_celery.engine import DueTasks, TaskRecord, TaskRef
from mcp_celery.engine.ports import OpenTasks
from mcp_celery.errors import StoredDataError
from mcp_celery.sealing import SealError
from mcp_celery.store.codec import flat_to_mapping
from mcp_celery.store.keys import RedisKeys
from mcp_celery.store.records import RedisTaskStore
from mcp_celery.store.scripts import Command
from mcp_celery.store.unreadable import UNREADABLE

logger = logging.getLogger(__name__)


class RedisExposed(OpenTasks):
    """Fulfils :class:`mcp_celery.engine.OpenTasks`.

    Args:
        store: Whose connections are used.
    """

    def __init__(self, store: RedisTaskStore) -> None:
        self._store = store
        self._keys: RedisKeys = store.keys

    @override
    async def due(self, interval_ms: int, limit: int) -> DueTasks:
        unreadable: list[bytes] = []

        def parse(reply: Any) -> DueTasks:
            is_open, found = cast("tuple[int, list[Any]]", reply)
            records: list[TaskRecord] = []
            for key, flat in zip(found[::2], found[1::2], strict=True):
                try:
                    records.append(self._store.seals.record(TaskRef.of_key(key.decode()), flat_to_mapping(flat)))
                except (NewerFormatError, SealError) as error:
                    logger.error("left a task to processes that can read its record: %s", error)
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

    @override
    async def hurry(self, keys: Sequence[str]) -> None:
        index = self._keys.exposed
        client = self._store.client.redis
        with suppress(StoredDataError):  # it is no index: the next look, which follows, says so and deletes it
            await self._store.guarded(lambda: client.zadd(index, dict.fromkeys(keys, 0), xx=True))
