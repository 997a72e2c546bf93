"""A server whose name (``QUEUED_NAME``), priority of a tool (``QUEUED_PRIORITY``) and Celery settings are the test's.

Servers and workers read the settings by ``CELERY_CONFIG_MODULE=tests.support.servers.queued_settings``.
"""

from __future__ import annotations

import os
from pathlib import Path

from mcp_celery import TaskConfig, TaskServer
from tests.support.servers.tools import append

TRIED_AGAIN = TaskConfig(autoretry_for=(ConnectionError,), max_retries=3, retry_backoff=True, retry_jitter=False)
PRIORITY = os.environ.get("QUEUED_PRIORITY")

server = TaskServer(os.environ.get("QUEUED_NAME", "queued"), task=True)


@server.tool(task=TaskConfig(priority=None if PRIORITY is None else int(PRIORITY)))
async def add(a: int, b: int) -> int:
    return a + b


@server.tool(task=TRIED_AGAIN)
async def fails_at_first(path: str) -> str:
    append(Path(path), "tried")
    if Path(path).read_text().count("tried") == 1:  # noqa: ASYNC240
        raise ConnectionError("not yet")
    return "at last"
