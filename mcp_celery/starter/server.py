"""An MCP server whose tools run as background tasks, each of them a Celery job.

    mcp-celery dev server.py

runs it with all it needs. README.md has the commands that call it.
"""

from __future__ import annotations

import asyncio

from mcp.server.mcpserver import Context
from pydantic import BaseModel

from mcp_celery import TaskConfig, TaskServer

# The name keeps this server's tasks and its queue, mcp.starter, apart from those of other servers on the same Redis.
server = TaskServer("starter")


# With task=True a client that follows tasks gets a task, and sees its progress. Other clients get the plain result.
# The docstring and the types of the arguments are what a model reads of the tool.
@server.tool(task=True)
async def build_report(year: int, ctx: Context) -> str:
    """Build a year's report, a month at a time."""
    for month in range(1, 13):
        await asyncio.sleep(0.2)  # stands for work that waits
        await ctx.report_progress(month, 12, f"{year}-{month:02}")
    return f"Report of {year}: 12 months"


# A function that does not wait need not be `async def`: it runs in a thread of the worker. TaskConfig has Celery's
# options: this job is ended after a minute, and runs again after a ConnectionError, three times at most.
@server.tool(task=TaskConfig(time_limit=60, autoretry_for=(ConnectionError,), max_retries=3))
def count_words(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


class Choice(BaseModel):
    """What `plan_trip` asks."""

    city: str


# A tool may ask its caller while it runs; the task waits, here for ten minutes at most.
@server.tool(task=TaskConfig(input_timeout=600))
async def plan_trip(days: int, ctx: Context) -> str:
    """Plan a trip, after asking where to."""
    answer = await ctx.elicit("Which city?", Choice)
    return f"{days} days in {answer.data.city}" if answer.action == "accept" else "No trip, then"


# Clients that know no tasks: a call that takes longer than five seconds is answered with the id of its task, and the
# model goes on with three more tools, task_status, task_result and task_cancel.
server.add_polling_tools(after=5)
