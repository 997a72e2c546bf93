"""A server that is traced, also by what instruments Celery, with a tool for each way in which a task goes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context
from mcp_types import InputRequiredResult
from opentelemetry.instrumentation.celery import (  # pyright: ignore[reportMissingTypeStubs]
    CeleryInstrumentor,
)
from opentelemetry.trace import get_current_span

from mcp_celery import TaskConfig, TaskServer
from tests.support.servers.asking import form
from tests.support.servers.tools import append

if os.environ.get("MEASURED_INSTRUMENT"):
    instrumentor: Any = CeleryInstrumentor()
    instrumentor.instrument()

server = TaskServer("measured", task=True)


@server.tool()
def fine() -> str:
    return f"{get_current_span().get_span_context().trace_id:032x}"


@server.tool()
def broken() -> str:
    raise ValueError("it is broken")


@server.tool(task=TaskConfig(autoretry_for=(ConnectionError,), max_retries=1))
def second_time_lucky(path: str) -> str:
    append(Path(path), "tried")
    if Path(path).read_text().count("tried") == 1:
        raise ConnectionError("not yet")
    return "lucky"


@server.tool(task=TaskConfig(ask="during"))
async def two_legs(ctx: Context) -> str | InputRequiredResult:
    return "done" if ctx.input_responses else InputRequiredResult(input_requests={"name": form("Your name?")})
