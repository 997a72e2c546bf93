"""Existing Celery jobs as tools: they run in their own workers, which know nothing of MCP.

``engine/foreign`` reads their states. This package declares tools, converts arguments and results, and publishes the
jobs. Celery publishes a chain, group or chord through its app: from the app's pool, which may wait for a broker for
minutes, and subscribed to every job's result for good. So ``canvas_app.py`` is an app with the host's settings, routes
and queues that publishes over our connection, and whose result backend waits for nothing. It has a thread of its own,
since single jobs and revokes must not wait for a thousand parts. The revoke of a task of several jobs uses that thread
too, and so comes after their publication.
"""

from mcp_celery.exposed.catalog import ExposedCatalog
from mcp_celery.exposed.events import JobEvents
from mcp_celery.exposed.exposing import Exposing, ToolDeclaration
from mcp_celery.exposed.tools import ExposedTool

__all__ = ["ExposedCatalog", "ExposedTool", "Exposing", "JobEvents", "ToolDeclaration"]
