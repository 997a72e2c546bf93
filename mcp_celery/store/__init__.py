"""Redis: records of tasks, and hints that they changed."""

from mcp_celery.store.bus import RedisTaskBus
from mcp_celery.store.records import RedisJobLedger, RedisTaskStore, connect

__all__ = ["RedisJobLedger", "RedisTaskBus", "RedisTaskStore", "connect"]
