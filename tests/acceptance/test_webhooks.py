"""Webhooks of real servers and workers arrive although workers are killed, and beside a receiver that never answers."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import pytest
from mcp.client import Client

from mcp_celery.cli.options import POOLS
from mcp_celery.client import TasksClient, call_tool_task
from tests.support.deployment import Deployment, deployed, process, wait_until
from tests.support.nodes import Pool
from tests.support.programs import Running
from tests.support.receiver import OLD_SECRET, SECRET, Received, receiving
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

SPEC: Final = "tests.support.servers.hooked:server"


@contextmanager
def silent_receiver() -> Generator[str]:
    """A receiver that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"


@contextmanager
def hooked(store_url: str, receiver: str, dead: str, **settings: str) -> Generator[tuple[Deployment, str]]:
    """A server, and its URL."""
    settings = {
        "MCP_CELERY_WEBHOOK_URL": receiver,
        "MCP_CELERY_WEBHOOK_SECRETS": f"{SECRET},{OLD_SECRET}",
        "DEAD_RECEIVER": dead,
        **settings,
    }
    with deployed(store_url, f"hooked-{os.urandom(4).hex()}", spec=SPEC, settings=settings) as site:
        yield site, site.serve()


def worker(site: Deployment, number: int, pool: str, *flags: str) -> AbstractContextManager[Running]:
    argv = [sys.executable, "-m", "celery", "-A", "mcp_celery", "worker", "-l", "INFO", "--without-mingle", "-c", "2"]
    argv += [*POOLS[pool], "-n", f"{site.namespace}-{number}@%h", *flags]
    return process(argv, site.env(MCP_CELERY_SERVER=SPEC), site.folder / f"worker-{number}.log")


def waiting(site: Deployment) -> list[str]:
    """The webhooks that no receiver has taken."""
    return [key for key in site.our_keys() if key.startswith(f"mcp_celery:{site.namespace}:webhooks:")]


async def ended(url: str, tool: str, **arguments: Any) -> str:
    """Run a tool as a task, and wait for its result. Gives the task's id."""
    async with Client(url, extensions=[TasksClient()]) as client:
        task = await call_tool_task(client, tool, arguments)
        await soon(task.result())
        return task.task_id


@pytest.mark.slow
async def test_a_webhook_arrives_although_the_worker_that_delivers_it_is_killed(store_url: str, pool: Pool) -> None:
    killed = threading.Event()

    def answer(webhook: Received) -> tuple[int, dict[str, str]]:
        killed.wait(60)
        return 204, {}

    with receiving() as receiver, hooked(store_url, receiver.url, receiver.url) as (site, url):
        receiver.answer = answer
        with worker(site, 1, pool) as first:
            task_id = await ended(url, "build_report", year=2026)
            await eventually(lambda: receiver.received, what="the worker delivers the webhook")
            os.killpg(first.pid, signal.SIGKILL)
            killed.set()
            with worker(site, 2, pool):
                await eventually(lambda: len(receiver.received) > 1, what="another worker delivers it again")
                delivered = "delivered webhook"
                await eventually(lambda: delivered in site.logs()["worker-2.log"], what="it is taken")
        first_time, again = receiver.received
        assert again.id == first_time.id
        assert again.verified_with(SECRET) == again.verified_with(OLD_SECRET) == first_time.verified_with(SECRET)
        assert (again.told["status"], again.told["scope"]) == ("completed", None)
        assert task_id.startswith(again.told["taskId"].removesuffix("…"))
        assert task_id not in again.body.decode()
        assert waiting(site) == []


@pytest.mark.slow
async def test_a_receiver_that_never_answers_delays_neither_tasks_nor_other_receivers(store_url: str) -> None:
    with (
        receiving() as receiver,
        silent_receiver() as dead,
        hooked(store_url, receiver.url, dead, MCP_CELERY_WEBHOOK_TIMEOUT_MS="2000") as (site, url),
        worker(site, 1, "asyncio"),
    ):
        for _ in range(5):
            await ended(url, "clean_up")
        log = site.folder / "worker-1.log"
        wait_until(lambda: "could not deliver webhook" in log.read_text(), "the worker has tried")
        for _ in range(5):
            await ended(url, "clean_up")
            await ended(url, "build_report", year=2026)
        await eventually(lambda: len(set(receiver.ids())) == 5, what="the other receiver has its webhooks")
        assert {one.told["component"] for one in receiver.received} == {"build_report"}
        await eventually(lambda: len(waiting(site)) == 10, what="those of the dead one wait")
        assert dead.removesuffix("/") in log.read_text()
