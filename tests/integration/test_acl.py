"""Redis users that may do no more than they need: those of docs/redis.md."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
import redis

from mcp_celery.engine import TaskRef
from mcp_celery.store import RedisTaskBus, connect
from mcp_celery.store.keys import RedisKeys
from tests.integration.conftest import TOOLS, Starter
from tests.support.deployment import Deployment, deployed
from tests.support.locks import reserve_port
from tests.support.nodes import ValkeyProcess
from tests.support.programs import ROOT, forked_command
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

PAGE: Final = ROOT / "docs" / "redis.md"
PREFIX: Final = "app:mcp"
JOB_SECONDS: Final = 120.0


def rules(user: str) -> list[str]:
    """What the page says of a user of Redis."""
    servers = PAGE.read_text().partition("\n## Sentinel\n")
    found = re.search(rf"^user {user} (.*)$", servers[0] + servers[2].partition("\n## ")[2], re.MULTILINE)
    assert found is not None, user
    return found.group(1).split()


class Users:
    """A Redis on a port, its users, and what it has refused to them."""

    def __init__(self, node: ValkeyProcess, port: int) -> None:
        self.client: Any = redis.Redis.from_url(node.url, decode_responses=True)
        self._port = port

    def add(self, user: str, *rights: str) -> str:
        """Make a user.

        Returns:
            The URL of a database of theirs.
        """
        self.client.execute_command("ACL", "SETUSER", user, *rights)
        return f"redis://{user}:PASSWORD@127.0.0.1:{self._port}/0"

    def refused(self) -> list[dict[str, Any]]:
        return self.client.acl_log()


@pytest.fixture
def users(own: Starter) -> Users:
    return Users(own.valkey(options={"port": (port := reserve_port())}), port)


@asynccontextmanager
async def running(url: str, **settings: str) -> AsyncGenerator[tuple[Deployment, Wire]]:
    names = {"MCP_CELERY_KEY_PREFIX": PREFIX, "MCP_CELERY_HEARTBEAT_MS": "500", **settings}
    with (
        deployed(url, f"acl-{os.urandom(3).hex()}", spec=TOOLS, settings=names) as deployment,
        deployment.worker("asyncio"),
    ):
        async with Wire(deployment.serve()) as wire:
            yield deployment, wire


async def do_everything(deployment: Deployment, wire: Wire) -> None:
    """Run a task whose end is pushed, cancel one that runs, and ask the worker something."""
    task_id = (await wire.create("report_steadily", count=3, pause_ms=150))["taskId"]
    assert [state["status"] for state in await soon(follow(wire, task_id), seconds=JOB_SECONDS)][-1] == "completed"
    task_id = (await wire.create("report_steadily", count=10_000, pause_ms=10))["taskId"]

    async def runs() -> bool:
        return "statusMessage" in await wire.get(task_id)

    await eventually(runs)
    await wire.ask("tasks/cancel", {"taskId": task_id})
    assert [state["status"] for state in await soon(follow(wire, task_id), seconds=JOB_SECONDS)][-1] == "cancelled"
    argv = [*forked_command("celery"), "-A", "mcp_celery", "inspect", "--timeout", "20", "ping"]
    await anyio.run_process(argv, env=deployment.env(), cwd=ROOT)  # raises if it fails


async def test_tasks_run_with_one_user_for_the_records_and_one_for_the_broker(users: Users) -> None:
    records = users.add("mcp-celery", *rules("mcp-celery"))
    broker = users.add("mcp-celery-broker", *rules("mcp-celery-broker"))
    async with running(records, MCP_CELERY_BROKER_URL=broker) as (deployment, wire):
        await do_everything(deployment, wire)
    assert users.refused() == []
    with redis.Redis.from_url(records) as limited:
        for ask in (lambda: limited.get("somebody-elses"), lambda: limited.publish("somebody-elses", "")):
            with pytest.raises(redis.ResponseError):
                ask()


@pytest.mark.shows("C9")
async def test_tasks_run_with_one_user_and_one_prefix_for_everything(users: Users, tmp_path: Path) -> None:
    (tmp_path / "prefixed.py").write_text(prefixed())
    search = f"{tmp_path}{os.pathsep}{ROOT}"
    url = users.add("mcp-celery-app", *rules("mcp-celery-app"))
    async with running(url, CELERY_CONFIG_MODULE="prefixed", PYTHONPATH=search) as (deployment, wire):
        await do_everything(deployment, wire)
    assert users.refused() == []
    assert [key for key in users.client.keys("*") if not key.startswith("app:")] == []


def prefixed() -> str:
    """The settings of Celery that the page gives."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if '"app:"' in block]
    return found


@pytest.mark.smoke
async def test_a_refused_subscription_is_logged_with_its_user_and_retried_rarely(
    users: Users, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mcp_celery.store.bus")
    url = users.add("quiet", "on", ">PASSWORD", "~*", "resetchannels", "+@all")
    keys = RedisKeys(PREFIX, "acl")
    bus = RedisTaskBus(connect(url, max_connections=2, timeout_seconds=60), keys, timeout_seconds=60)
    try:
        began = time.monotonic()

        def attempts() -> int:
            return sum(int(one["count"]) for one in users.refused() if one["object"] == keys.idle_channel)

        async def follows() -> None:
            async with bus.subscribe([TaskRef("client-a", "task")]):
                pass

        following = asyncio.create_task(follows())
        await eventually(lambda: attempts() >= 5, what="it has tried five times")
        # Each pause is twice as long as the one before, less up to a half at random.
        assert time.monotonic() - began >= 0.5 * (0.0625 + 0.125 + 0.25 + 0.5)
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 1
        assert "may not subscribe" in said[0]
        assert f"&{PREFIX}:acl:*" in said[0]
        users.add("quiet", f"&{PREFIX}:*")
        await soon(following)
        assert caplog.messages[-1] == "pub/sub connection to the task store (MCP_CELERY_REDIS_URL) restored"
    finally:
        await bus.aclose()
