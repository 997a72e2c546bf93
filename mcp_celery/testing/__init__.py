"""The engine's ports in memory, so that a server with tasks can be tested without Redis, a broker and workers.

They keep the same promises as Redis and Celery do: the status table, attempts, one start for each delivery, expiry by
time, one hint for several changes. Outages are switched on and off (``fail()``, ``recover()``). One contract suite runs
over these and the real ones. :class:`MemoryBackend` puts all of them together::

    backend = MemoryBackend()
    engine = backend.engine()
    record = await engine.submit(submission)
    backend.results.put(record.job_id, "SUCCESS", JobOutcome(result))
    view = await engine.get(caller, record.task_id)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mcp_types.version import LATEST_HANDSHAKE_VERSION

from mcp_celery.engine import UNOBSERVED, Observers, TaskEngine, TaskLimits, now_ms
from mcp_celery.testing.bus import MemoryTaskBus
from mcp_celery.testing.queue import MemoryTaskQueue
from mcp_celery.testing.results import MemoryTaskResults
from mcp_celery.testing.store import MemoryJobLedger, MemoryTaskStore

__all__ = [
    "DEFAULT_LIMITS",
    "MemoryBackend",
    "MemoryJobLedger",
    "MemoryTaskBus",
    "MemoryTaskQueue",
    "MemoryTaskResults",
    "MemoryTaskStore",
]

DEFAULT_LIMITS: Final = TaskLimits(default_ttl_ms=3_600_000, max_ttl_ms=86_400_000, poll_interval_ms=1_000)
"""What :meth:`MemoryBackend.engine` grants."""


@dataclass
class MemoryBackend:
    """Everything an engine needs, in memory.

    Args:
        clock: Gives milliseconds since the epoch.
        observers: To whom changes of tasks are reported.
    """

    clock: Callable[[], int] = now_ms
    observers: Observers = UNOBSERVED
    bus: MemoryTaskBus = field(default_factory=MemoryTaskBus)
    results: MemoryTaskResults = field(default_factory=MemoryTaskResults)
    queue: MemoryTaskQueue = field(default_factory=MemoryTaskQueue)
    store: MemoryTaskStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = MemoryTaskStore(self.bus, clock=self.clock, results=self.results, observers=self.observers)

    def engine(self, limits: TaskLimits = DEFAULT_LIMITS) -> TaskEngine:
        """An engine over this backend."""
        return TaskEngine(
            store=self.store,
            queue=self.queue,
            bus=self.bus,
            results=None,
            limits=limits,
            answer_version=LATEST_HANDSHAKE_VERSION,
            observers=self.observers,
        )
