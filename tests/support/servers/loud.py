"""A server whose tool logs what its caller says, through loggers of three makers."""

from __future__ import annotations

import logging

from celery.utils.log import get_task_logger

from mcp_celery import TaskServer

server = TaskServer("loud", task=True, log_level="INFO")


@server.tool()
async def shout(text: str) -> str:
    """Logs a text, and fails with it."""
    logging.getLogger("somebody").warning("plainly %s", text)
    get_task_logger("somebody.jobs").warning("in a job %s", text)
    raise ValueError(text)
