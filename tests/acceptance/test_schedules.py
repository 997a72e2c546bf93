"""Celery beat creates tasks of a caller, one for each tick, whoever else sends the tick and whoever dies."""

from __future__ import annotations

import re
import sys
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import pytest

from tests.support.deployment import Deployment, deployed, process
from tests.support.programs import Running
from tests.support.session import over_http
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

SPEC: Final = "tests.support.servers.scheduled:server"


HOST: Final = "tests.support.servers.scheduled_host"


def celery(site: Deployment, name: str, app: str, *argv: str) -> AbstractContextManager[Running]:
    """A command of an app's ``celery`` in a process of its own."""
    env = site.env(MCP_CELERY_SERVER=SPEC)
    return process([sys.executable, "-m", "celery", "-A", app, *argv, "-l", "INFO"], env, site.folder / f"{name}.log")


def beat(site: Deployment, folder: Path, app: str) -> AbstractContextManager[Running]:
    return celery(site, f"beat-{app}", app, "beat", "-s", str(folder / app), "--pidfile=")


def worker(site: Deployment, number: int) -> AbstractContextManager[Running]:
    name = f"worker-{number}"
    return celery(site, name, "mcp_celery", "worker", "--without-mingle", "-n", f"{site.namespace}-{name}@%h")


def made(site: Deployment) -> Counter[str]:
    """The tasks that ticks have made, by how many ticks."""
    lines = "\n".join(text for name, text in site.logs().items() if name.startswith("worker"))
    return Counter(re.findall(r"a tick of the schedule 'yearly' has made task (\S+)", lines))


@pytest.mark.slow
async def test_each_tick_makes_one_task_of_its_owner_with_two_beats_one_of_a_host_and_when_processes_are_killed(
    store_url: str, tmp_path: Path
) -> None:
    with (
        deployed(store_url, "scheduled", spec=SPEC) as site,
        beat(site, tmp_path, "mcp_celery") as own_beat,
        beat(site, tmp_path, HOST),
    ):
        url = site.serve()
        with worker(site, 1) as first_worker:
            await eventually(lambda: sum(times > 1 for times in made(site).values()) > 1, what="both beats send a tick")
            own_beat.kill()
            first_worker.kill()
        before = len(made(site))
        with worker(site, 2):
            await eventually(lambda: len(made(site)) > before + 2, what="the others go on")
            async with over_http(url, token="alice") as alice:
                seen = set(made(site))
                listed = [one["taskId"] for one in await alice.listed()]
                assert seen <= set(listed)
                last = (await alice.result(listed[0])).result
                assert last["content"][0]["text"] == "the report of 2026"
            async with over_http(url, token="bob") as bob:
                assert await bob.listed() == []
