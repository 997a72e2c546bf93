"""The demo server, which is part of the package: ``mcp_celery/demo/server.py``.

mcp-celery dev workers.demo:server
"""

from __future__ import annotations

from mcp_celery.demo.server import server

__all__ = ["server"]
