"""A server whose operator lets one job be retried by Celery, as hosts do with ``autoretry_for``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.app.autoretry import add_autoretry_behaviour
from mcp.shared.exceptions import MCPError

from mcp_celery import Settings, TaskServer
from mcp_celery.default_app import default_app
from mcp_celery.errors import JobFailedError
from mcp_celery.server.task_server import tasks_of
from tests.support.servers.tools import append


def build(*, celery: Celery | None = None, settings: Settings | None = None) -> TaskServer:
    server = TaskServer("flaky", task=True, celery=celery, settings=settings)

    @server.tool()
    def second_time_lucky(path: str, secret: str) -> str:
        append(Path(path), "tried")
        if Path(path).read_text().count("tried") == 1:
            raise MCPError(-32050, "not yet")
        return "lucky"

    return server


server = build()


@signals.worker_init.connect
def retry(**_: Any) -> None:
    for name, job in default_app.tasks.items():
        if str(name).startswith(f"mcp.{tasks_of(server).namespace}."):
            options = {"max_retries": 1, "countdown": 1}
            add_autoretry_behaviour(job, autoretry_for=(JobFailedError,), retry_kwargs=options)
