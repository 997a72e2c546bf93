"""A server that exposes somebody else's jobs, and has a tool of its own. Its workers have ours, the jobs' have not."""

from __future__ import annotations

from pydantic import BaseModel, Field
from reports import jobs
from reports.app import app

from mcp_celery import TaskConfig, TaskServer


class Numbers(BaseModel):
    """Written by hand, for a job of which only the name is known."""

    left: int = Field(ge=0)
    right: int = 1


server = TaskServer("exposing", celery=app)


@server.tool(task=True)
def own(name: str) -> str:
    return f"Hello, {name}"


server.expose(jobs.build, name="build_report", fixed={"region": "eu"})
server.expose("reports.jobs.add", name="add_by_name", arguments=Numbers, task=TaskConfig(show_arguments=["left"]))
server.expose(jobs.raises, show_errors=[jobs.NoSuchYearError])
server.expose(jobs.odd_fails, name="odd_fails")
server.expose(jobs.wait, name="wait", task=TaskConfig(ttl=600_000))
server.expose(jobs.wait, name="wait_or_end", terminate=True)
server.expose(jobs.wait, name="wait_a_moment", task=TaskConfig(expires=1))
server.expose(jobs.wait, name="wait_nowhere", task=TaskConfig(expires=1, queue="reports-nobody"))
server.expose(jobs.forgetful, name="remembered", keep_result=True)
server.expose_all(
    app,
    include=["reports.jobs.*"],
    exclude=["*.forgetful", "*.raises", "*.total", "*.part_of", "*.add", "*.build", "*.wait", "*.odd_fails"],
)
server.expose_canvas(jobs.added_up)
server.expose_canvas(jobs.side_by_side)
server.expose_canvas(jobs.in_total, terminate=True)
server.expose_canvas(jobs.with_a_failing_part)
server.expose_canvas(jobs.of_forgetful_jobs)
