"""How full the store's memory is, as far as one process knows: it looks now and then, and counts what it lets in."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import redis

from mcp_celery.common.single_flight import SingleFlight
from mcp_celery.errors import StoreUnavailableError

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
"""How long a look is good for."""
RETRY_AFTER_MS: Final = 5_000
"""When a caller may ask again whose task found no memory."""

MemoryInfo = dict[str, Any]
"""What Redis's ``INFO memory`` says."""


class StoreMemory:
    """Says whether there is memory for one more task.

    Args:
        most_percent: How much of Redis's ``maxmemory`` may be in use.
        clock: Seconds of a clock that only goes forward.
    """

    def __init__(self, most_percent: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.most_percent = most_percent
        self._clock = clock
        self._room = float("inf")
        self._looked_at = float("-inf")
        self._looking = SingleFlight[None]()
        self._cannot_look = False

    async def has_room(self, size: int, look: Callable[[], Awaitable[MemoryInfo]]) -> bool:
        """Let a task in, and count its bytes, looking first where the last look is too old.

        Args:
            size: Of what will be kept, in bytes.
            look: Asks Redis. Calls that come meanwhile wait for the same answer.

        Raises:
            StoreUnavailableError: Redis did not answer.
        """
        if self._must_look(size):
            await self._looking.do(lambda: self._look(look))
        if self._room < size:
            return False
        self._room -= size
        return True

    def _must_look(self, size: int) -> bool:
        """Whether the last look is old, or what was let in since may have filled the room that it saw."""
        age = self._clock() - self._looked_at
        return not self._cannot_look and (age >= LOOK_SECONDS or (self._room < size and age >= LOOK_SECONDS / 10))

    async def _look(self, look: Callable[[], Awaitable[MemoryInfo]]) -> None:
        try:
            info = await look()
        except StoreUnavailableError as error:
            if not isinstance(error.__cause__, redis.ResponseError):
                raise
            # An ACL forbids it, or the server is not quite Redis.
            logger.warning(
                "MCP_CELERY_MAX_STORE_MEMORY_PERCENT has no effect: Redis refuses INFO memory (%s)", error.__cause__
            )
            self._cannot_look, self._room = True, float("inf")
            return
        most = int(info.get("maxmemory") or 0) * self.most_percent / 100
        self._room = most - int(info.get("used_memory") or 0) if most else float("inf")
        self._looked_at = self._clock()
