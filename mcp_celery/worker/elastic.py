"""The path that apps name to add the bootstep: ``mcp_celery.worker.elastic:Elastic``."""

from mcp_celery.asyncio_pool.elastic import Elastic

__all__ = ["Elastic"]
