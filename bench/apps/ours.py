"""The tools as tasks on mcp_celery, with its default settings."""

from __future__ import annotations

from bench.apps.tools import TOOLS
from mcp_celery import TaskServer

server = TaskServer("bench")
for tool in TOOLS:
    server.add_tool(tool, task=True)
