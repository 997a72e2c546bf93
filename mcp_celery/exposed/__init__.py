"""Existing Celery jobs as tools: they run in their own workers, which know nothing of MCP."""

from mcp_celery.exposed.catalog import ExposedCatalog
from mcp_celery.exposed.events import JobEvents
from mcp_celery.exposed.exposing import Exposing
from mcp_celery.exposed.tools import ExposedTool

__all__ = ["ExposedCatalog", "ExposedTool", "Exposing", "JobEvents"]
