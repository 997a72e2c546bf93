"""Servers as they are deployed: each module has a ``server``, for ``MCP_CELERY_SERVER=workers.demo:server``."""
