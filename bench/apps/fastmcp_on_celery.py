"""The server of ``bench/apps/fastmcp4.py`` with one import changed: its tasks are Celery jobs."""

from __future__ import annotations

from typing import Any

from fastmcp import FastMCP

from bench.apps.tools import TOOLS
from mcp_celery.fastmcp import TasksExtension

server: FastMCP[Any] = FastMCP("bench")
server.add_extension(TasksExtension())
for tool in TOOLS:
    server.tool(task=True)(tool)
