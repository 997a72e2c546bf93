"""Tasks in the memory of one process, so that a server can be tested without Redis, a broker and workers.

A server that is given a :class:`MemoryBackend` keeps its tasks in this process and runs their jobs here. A test uses
it with a client of the SDK; save this as ``test_reports.py`` and run ``pytest``::

    import pytest
    from mcp.client import Client

    from mcp_celery import TaskServer
    from mcp_celery.client import TasksClient, call_tool_task
    from mcp_celery.testing import MemoryBackend


    @pytest.fixture
    def anyio_backend():
        return "asyncio"


    @pytest.fixture
    def server():
        server = TaskServer("reports", backend=MemoryBackend())

        @server.tool(task=True)
        async def build_report(year: int) -> str:
            return f"The report of {year}"

        return server


    @pytest.mark.anyio
    async def test_a_report_is_built_by_a_task(server):
        async with Client(server, extensions=[TasksClient()]) as client:
            task = await call_tool_task(client, "build_report", {"year": 2026})
            result = await task.result()
        assert result.structured_content == {"result": "The report of 2026"}

For a server that is made at import, set ``MCP_CELERY_REDIS_URL=memory://`` before the import. What works in memory, and
what is refused, is in ``docs/testing.md``.

The parts are ports of the engine. They keep the same promises as Redis and Celery do: the status table, attempts, one
start for each delivery, expiry by time, one hint for several changes. One contract suite runs over these and the real
ones. Outages are switched on and off (``fail()``, ``recover()``). An engine can be tested alone::

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
from mcp_celery.testing.webhooks import MemoryWebhooks

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
    "MemoryWebhooks",
]
