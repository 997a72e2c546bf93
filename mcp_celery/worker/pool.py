"""The path that settings name: ``worker_pool = "mcp_celery.worker.pool:TaskPool"``."""

from mcp_celery.asyncio_pool.pool import TaskPool, at_pool_stop, await_in_job, current_job, in_job

__all__ = ["TaskPool", "at_pool_stop", "await_in_job", "current_job", "in_job"]
