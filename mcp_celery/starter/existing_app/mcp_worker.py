"""The app as workers of the MCP server's jobs find it: ``celery -A mcp_worker worker -Q mcp.starter``.

Without ``-Q`` such a worker runs the app's own jobs, too. With the call of `install` beside the app itself, the app's
own workers run the server's jobs, and this file can go.
"""

from __future__ import annotations

from shop import app

from mcp_celery import install

install(app, "mcp_server:server")

__all__ = ["app"]
