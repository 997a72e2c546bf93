"""The MCP server of a Celery app: its tools become jobs of that app.

    mcp-celery serve mcp_server.py
    celery -A mcp_worker worker -Q mcp.starter

Both keep the tasks' records in the Redis that MCP_CELERY_REDIS_URL names, by default redis://127.0.0.1:6379/0. The
broker and the result backend are the app's own.
"""

from __future__ import annotations

import asyncio

from mcp.server.mcpserver import Context
from shop import app

from mcp_celery import TaskServer

# The name keeps this server's tasks and its queue, mcp.starter, apart from those of other servers on the same Redis.
server = TaskServer("starter", celery=app)


# With task=True a client that follows tasks gets a task, and sees its progress. Other clients get the plain result.
# The docstring and the types of the arguments are what a model reads of the tool.
@server.tool(task=True)
async def build_report(year: int, ctx: Context) -> str:
    """Build a year's report, a month at a time."""
    for month in range(1, 13):
        await asyncio.sleep(0.2)  # stands for work that waits
        await ctx.report_progress(month, 12, f"{year}-{month:02}")
    return f"Report of {year}: 12 months"


# Jobs that the app has become tools by `server.expose_all(app, include=["reports.*"])`, with names or patterns of
# yours. They run in the workers that run them today, which need no change.

# Clients that know no tasks: a call that takes longer than five seconds is answered with the id of its task, and the
# model goes on with three more tools, task_status, task_result and task_cancel.
server.add_polling_tools(after=5)
