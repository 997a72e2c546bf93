"""Redis: records of tasks, and hints that they changed."""

from mcp_celery.store.backend import RedisBackend
from mcp_celery.store.bus import RedisTaskBus
from mcp_celery.store.client import connect
from mcp_celery.store.connection import call_blocking, connect_blocking
from mcp_celery.store.exposed import RedisExposed
from mcp_celery.store.memory import StoreMemory
from mcp_celery.store.records import RedisJobLedger, RedisTaskStore
from mcp_celery.store.recovery import RedisRecovery
from mcp_celery.store.webhooks import RedisWebhooks

__all__ = [
    "RedisBackend",
    "RedisExposed",
    "RedisJobLedger",
    "RedisRecovery",
    "RedisTaskBus",
    "RedisTaskStore",
    "RedisWebhooks",
    "StoreMemory",
    "call_blocking",
    "connect",
    "connect_blocking",
]
