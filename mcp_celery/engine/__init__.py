"""What a task is and may do. Knows neither Celery nor Redis nor the MCP server."""

from mcp_celery.engine.core import TaskEngine, TaskLimits
from mcp_celery.engine.outcome import JobOutcome, expired, failure, settlement, success
from mcp_celery.engine.ports import JobLedger, TaskBus, TaskHints, TaskQueue, TaskResults, TaskStore
from mcp_celery.engine.record import (
    Caller,
    Change,
    Changed,
    Claim,
    EncodedResult,
    JSONObject,
    Progress,
    RpcError,
    StoredResult,
    StoredTask,
    Submission,
    TaskRecord,
    TaskRef,
    TaskView,
    now_ms,
)
from mcp_celery.engine.status import MOVES, OPEN, TERMINAL, TaskStatus, sources_of
from mcp_celery.engine.watch import TaskWatch

__all__ = [
    "MOVES",
    "OPEN",
    "TERMINAL",
    "Caller",
    "Change",
    "Changed",
    "Claim",
    "EncodedResult",
    "JSONObject",
    "JobLedger",
    "JobOutcome",
    "Progress",
    "RpcError",
    "StoredResult",
    "StoredTask",
    "Submission",
    "TaskBus",
    "TaskEngine",
    "TaskHints",
    "TaskLimits",
    "TaskQueue",
    "TaskRecord",
    "TaskRef",
    "TaskResults",
    "TaskStatus",
    "TaskStore",
    "TaskView",
    "TaskWatch",
    "expired",
    "failure",
    "now_ms",
    "settlement",
    "sources_of",
    "success",
]
