"""Tasks of clients that are gone are cancelled, also when the server that they asked is killed; others go on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any, Final, cast

import pytest
from mcp.client import Client

from mcp_celery.client import TasksClient, call_tool_task
from mcp_celery.common.background import ended
from tests.support.deployment import Deployment, answering_url, deployed, process
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

SPEC: Final = "tests.support.servers.abandoning:server"
HAS_ENDED: Final = "the tool has ended"


def status(site: Deployment, task_id: str) -> str:
    """A task's status, read without asking for the task."""
    store: Any = site.redis
    return cast(str, store.hget(f"mcp_celery:{site.namespace}:task:anon:{task_id}", "status"))


def times_ended(site: Deployment) -> int:
    return site.logs()["worker-asyncio.log"].count(HAS_ENDED)


@pytest.mark.slow
async def test_a_task_of_a_client_that_is_gone_is_cancelled_and_its_job_ends_also_when_its_server_is_killed(
    store_url: str,
) -> None:
    settings = {"MCP_CELERY_HEARTBEAT_MS": "300"}
    with deployed(store_url, f"abandoning-{os.urandom(4).hex()}", spec=SPEC, settings=settings) as site:
        argv = [sys.executable, "-m", "mcp_celery", "serve", SPEC, "--port", "0"]
        log = site.folder / "killed.log"
        url = site.serve()
        with site.worker("asyncio"), process(argv, site.env(), log) as killed:
            async with Client(answering_url(log, killed), extensions=[TasksClient()]) as client:
                left = (await call_tool_task(client, "wait_for_the_end", {})).task_id
            async with Client(url, extensions=[TasksClient()]) as client:
                followed = await call_tool_task(client, "wait_for_the_end", {})
                following = asyncio.create_task(_follow(followed))
                os.killpg(killed.pid, signal.SIGKILL)
                await eventually(lambda: status(site, left) == "cancelled", what="the task that was left is cancelled")
                await eventually(lambda: times_ended(site) == 1, what="its job ends")
                assert status(site, followed.task_id) == "working"
                await ended(following)
            await eventually(lambda: status(site, followed.task_id) == "cancelled", what="the other one, when left")
            await eventually(lambda: times_ended(site) == 2, what="its job ends too")


async def _follow(task: Any) -> None:
    await task.result()
