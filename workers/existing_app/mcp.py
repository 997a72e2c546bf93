"""The shop's MCP server. Its tools become jobs of the shop's own Celery app: ``celery=app`` is all that it takes."""

from __future__ import annotations

from typing import Annotated

import anyio.from_thread
from mcp.server.mcpserver import Context
from pydantic import BaseModel, Field

from mcp_celery import TaskConfig, TaskServer
from workers.existing_app import reports
from workers.existing_app.celery import app

Year = Annotated[int, Field(ge=2000, le=2100, description="A year of business.")]

server = TaskServer("shop", celery=app, instructions="Reports of a shop.")


class Report(BaseModel):
    """Orders of a year."""

    year: int
    months: int
    orders: int


@server.tool(task=True)
def export_orders(year: Year, ctx: Context) -> Report:
    """Count a year's orders, month by month. Plain functions of the shop run as they are, in a worker's thread."""

    def tell(count: int) -> None:
        anyio.from_thread.run(ctx.report_progress, count, 12, f"{year}-{count:02}")

    return Report.model_validate(reports.summary(year, list(range(1, 13)), tell))


@server.tool(task=TaskConfig(time_limit=60, rate_limit="10/m", expires=600))
def compare_years(first: Year, second: Year) -> str:
    """Say which of two years had more orders."""
    one, other = (reports.summary(year, list(range(1, 13)))["orders"] for year in (first, second))
    return f"{first if one >= other else second} had more orders"


# The shop's jobs as they are. Any of its workers runs them, also one that knows nothing of this server.
server.expose(reports.build, name="build_report")
server.expose_canvas(reports.build_by_quarters)
