"""A FastMCP server whose tools run as Celery jobs: progress, a question, a sync function and a mounted server.

    mcp-celery dev workers.fastmcp_server:mcp

Then, in another terminal:

    mcp-celery call http://127.0.0.1:8000/mcp build --arg year=2026

Needs ``pip install "mcp-celery-backend[embedded,fastmcp]"``.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated

from fastmcp import Context, FastMCP
from fastmcp.dependencies import Progress
from pydantic import Field

from mcp_celery.fastmcp import TaskConfig, TasksExtension

mcp = FastMCP("fastmcp-reports")
mcp.add_extension(TasksExtension())  # was: from fastmcp_tasks import TasksExtension


@mcp.tool(task=True)
async def build(year: Annotated[int, Field(ge=1, le=9999)], ctx: Context) -> str:
    """Build a year's report, a month at a time."""
    for month in range(1, 13):
        await asyncio.sleep(0.5)
        await ctx.report_progress(month, 12, f"{year}-{month:02}")
    return f"Report of {year}: 12 months"


@mcp.tool(task=True)
async def publish(titles: list[str], ctx: Context, progress: Progress = Progress()) -> str:
    """Publish reports, after asking once. The worker waits for the answer."""
    answer = await ctx.elicit(f"Publish {len(titles)} reports?", bool)
    if answer.action != "accept" or not answer.data:
        return "Nothing was published"
    await progress.set_total(max(1, len(titles)))
    for title in titles:
        await progress.set_message(f"Publishing {title}")
        await asyncio.sleep(0.5)
        await progress.increment()
    return f"Published {len(titles)} reports"


@mcp.tool(task=TaskConfig(time_limit=60, show_arguments=["rounds"]))
def digest(text: str, rounds: Annotated[int, Field(ge=1, le=10_000_000)] = 1_000_000) -> str:
    """Hash a text again and again. A function that only computes need not be `async def`."""
    found = text.encode()
    for _ in range(rounds):
        found = hashlib.sha256(found).digest()
    return found.hex()


archive = FastMCP("archive")
mcp.mount(archive, namespace="archive")


@archive.tool(task=TaskConfig(mode="required"))
async def restore(report: str, ctx: Context) -> str:
    """A tool of a mounted server, which runs only as a task."""
    await ctx.info(f"restoring {report}")
    await asyncio.sleep(2)
    return f"{report} is restored"
