"""A server that logs all it has to say. One tool logs what its caller says, through loggers of three makers."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from celery.utils.log import get_task_logger
from mcp.server.mcpserver import Context
from mcp_types import ElicitRequest, ElicitRequestFormParams, InputRequiredResult

from mcp_celery import TaskConfig, TaskServer

server = TaskServer("loud", task=True, log_level="INFO")


@server.tool()
async def shout(text: str) -> str:
    """Logs a text, and fails with it."""
    logging.getLogger("somebody").warning("plainly %s", text)
    get_task_logger("somebody.jobs").warning("in a job %s", text)
    raise ValueError(text)


@server.tool(task=TaskConfig(ask="during"))
async def ask(ctx: Context) -> str | InputRequiredResult:
    """Needs two jobs."""
    if not ctx.input_responses:
        schema = {"type": "object", "properties": {"name": {"type": "string"}}}
        question = ElicitRequest(params=ElicitRequestFormParams(message="Your name?", requested_schema=schema))
        return InputRequiredResult(input_requests={"name": question})
    answer: Any = ctx.input_responses["name"]
    return f"Hello, {answer.content['name']}!"


@server.tool()
async def hold(path: str) -> str:
    """Ends when the test says so."""
    while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - a file is what another process can make
        await asyncio.sleep(0.01)
    return "released"
