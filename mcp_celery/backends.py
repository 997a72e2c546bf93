"""Which storage a server keeps its tasks in: the URL says it."""

from __future__ import annotations

from mcp_celery.engine import Backend
from mcp_celery.settings import Settings
from mcp_celery.store import RedisBackend
from mcp_celery.testing import MemoryBackend


def backend_of(settings: Settings) -> Backend:
    """The backend that ``MCP_CELERY_REDIS_URL`` names."""
    if settings.is_in_memory:
        return MemoryBackend()
    return RedisBackend(
        url=settings.redis_url,
        key_prefix=settings.key_prefix,
        timeout_seconds=settings.store_timeout_ms / 1000,
        max_connections=settings.redis_max_connections,
        max_memory_percent=settings.max_store_memory_percent,
    )
