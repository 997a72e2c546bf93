"""The memory of a process as a storage of tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mcp_types.version import LATEST_HANDSHAKE_VERSION
from typing_extensions import override

from mcp_celery.engine import (
    UNOBSERVED,
    BackendOptions,
    Observers,
    OpenBackend,
    TaskEngine,
    TaskLimits,
    now_ms,
)
from mcp_celery.engine.backend import Backend
from mcp_celery.testing.bus import MemoryTaskBus
from mcp_celery.testing.ledger import MemoryJobLedger
from mcp_celery.testing.queue import MemoryTaskQueue
from mcp_celery.testing.recovery import MemoryOpenTasks, MemoryRecovery
from mcp_celery.testing.results import MemoryTaskResults
from mcp_celery.testing.store import MemoryTaskStore
from mcp_celery.testing.webhooks import MemoryWebhooks

DEFAULT_LIMITS: Final = TaskLimits(default_ttl_ms=3_600_000, max_ttl_ms=86_400_000, poll_interval_ms=1_000)
"""What `MemoryBackend.engine` grants."""
DEFAULT_MAX_BYTES: Final = 1_073_741_824
"""How much all tasks of a server may take: 1 GiB."""


@dataclass
class MemoryBackend(Backend):
    """Everything that a server, or an engine alone, keeps in memory. Fulfils `mcp_celery.engine.Backend`.

    A server is given it as ``TaskServer(..., backend=MemoryBackend())``. Its tasks are kept apart from those of other
    servers and live as long as this object. A test of the engine alone takes `engine`, which uses ``store``,
    ``bus``, ``queue`` and ``results``.

    Args:
        clock: Gives milliseconds since the epoch.
        observers: To whom changes of tasks are reported by ``store``.
        max_bytes: How much all tasks of one server may take: requests of open tasks, records, results. Above it new
            tasks are refused.
    """

    clock: Callable[[], int] = now_ms
    observers: Observers = UNOBSERVED
    bus: MemoryTaskBus = field(default_factory=MemoryTaskBus)
    results: MemoryTaskResults = field(default_factory=MemoryTaskResults)
    queue: MemoryTaskQueue = field(default_factory=MemoryTaskQueue)
    store: MemoryTaskStore = field(init=False)
    max_bytes: int = DEFAULT_MAX_BYTES
    _ledgers: dict[str, MemoryJobLedger] = field(default_factory=dict[str, MemoryJobLedger], init=False)

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

    @property
    @override
    def in_process(self) -> bool:
        return True

    @property
    @override
    def name(self) -> str:
        return "the memory of this process"

    @override
    def unusable(self) -> None:
        """Always usable: there is no connection."""

    @override
    def holds_results_at(self, url: str | None, key: str, namespace: str) -> bool:
        return False

    @override
    def holds_queues_at(self, url: str, prefix: str, namespace: str) -> bool:
        return False

    @override
    def open(self, options: BackendOptions) -> OpenBackend:
        ledger = self.open_ledger(options)
        return OpenBackend(MemoryTaskStore.over(ledger), ledger.bus, MemoryRecovery(ledger), MemoryOpenTasks(ledger))

    @override
    def open_store(self, options: BackendOptions) -> MemoryTaskStore:
        return MemoryTaskStore.over(self.open_ledger(options))

    @override
    def open_bus(self, options: BackendOptions) -> MemoryTaskBus:
        return self.open_ledger(options).bus

    @override
    def open_outbox(self, options: BackendOptions) -> MemoryWebhooks:
        return MemoryWebhooks(self.open_ledger(options))

    @override
    def open_ledger(self, options: BackendOptions) -> MemoryJobLedger:
        if options.namespace not in self._ledgers:
            self._ledgers[options.namespace] = MemoryJobLedger(
                MemoryTaskBus(), self.clock, None, options.snapshots, options.observers, self.max_bytes
            )
        return self._ledgers[options.namespace]
