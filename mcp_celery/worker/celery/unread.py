"""For how long a worker may have messages that it has not read.

A worker claims a job when it reads its message, or a moment later (``claims.py``). It reads while jobs run, except on
Celery's solo pool, where a job keeps the consumer waiting. RabbitMQ has sent such a worker as many messages as it
prefetches by then: they wait in its socket, in no queue and claimed by no worker, for as long as the jobs in front of
them last. The reaper must not take them for lost.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Final

from celery import signals
from celery.concurrency.solo import TaskPool
from celery.worker import state

MOST_RECEIPTS: Final = 10_000
"""How many receipts are remembered; a worker that prefetches more counts as one that prefetches any number."""
IDLE_SECONDS: Final = 0.05
"""A worker that runs no job for so long has read all that it has: the next message begins at once."""


class UnreadMessages:
    """Notes when a worker has read messages.

    Args:
        controller: Celery's worker.
    """

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._blocks = isinstance(controller.pool, TaskPool)
        self._idle_at = time.monotonic()
        self._read_at = deque[float](maxlen=MOST_RECEIPTS)
        if self._blocks:
            signals.task_received.connect(self._received, dispatch_uid=f"mcp_celery.unread.{id(controller)}")

    def _received(self, **_: Any) -> None:
        self._read_at.append(time.monotonic())

    async def ms(self) -> int:
        """For how long the worker may have messages that it has not read, in ms; 0: it has none."""
        if not self._blocks or await self._is_idle():
            self._idle_at = time.monotonic()
            return 0
        return max(1, round((time.monotonic() - self._all_read_at()) * 1000))

    async def _is_idle(self) -> bool:
        last_read_at = self._last_read_at
        if state.active_requests:
            return False
        await asyncio.sleep(IDLE_SECONDS)
        return not state.active_requests and self._last_read_at == last_read_at

    @property
    def _last_read_at(self) -> float:
        return self._read_at[-1] if self._read_at else 0.0

    def _all_read_at(self) -> float:
        """Before which time it cannot have got what it has not read: as many messages as it prefetches came later."""
        consumer = self._controller.consumer
        prefetched: int = consumer.qos.value if consumer is not None and consumer.qos is not None else 0
        if not 0 < prefetched <= len(self._read_at):
            return self._idle_at
        return max(self._idle_at, self._read_at[-prefetched])
