"""A server whose tasks have webhooks; those of one tool go to a receiver of their own."""

from __future__ import annotations

import os

from mcp_celery import TaskConfig, TaskServer

server = TaskServer("hooked", log_level="WARNING")


@server.tool(task=True)
async def build_report(year: int) -> str:
    return f"the report of {year}"


@server.tool(task=TaskConfig(webhook=os.environ["DEAD_RECEIVER"]))
async def clean_up() -> str:
    return "clean"
