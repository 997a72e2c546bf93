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

from mcp_celery.testing.backend import DEFAULT_LIMITS, DEFAULT_MAX_BYTES, MemoryBackend
from mcp_celery.testing.bus import MemoryTaskBus
from mcp_celery.testing.ledger import MemoryJobLedger
from mcp_celery.testing.queue import MemoryTaskQueue
from mcp_celery.testing.recovery import MemoryOpenTasks, MemoryRecovery
from mcp_celery.testing.results import MemoryTaskResults
from mcp_celery.testing.store import MemoryTaskStore

__all__ = [
    "DEFAULT_LIMITS",
    "DEFAULT_MAX_BYTES",
    "MemoryBackend",
    "MemoryJobLedger",
    "MemoryOpenTasks",
    "MemoryRecovery",
    "MemoryTaskBus",
    "MemoryTaskQueue",
    "MemoryTaskResults",
    "MemoryTaskStore",
]
