"""Somebody else's jobs as tools: their workers run them, in a venv that has nothing of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.deployment import Deployment, deployed
from tests.support.hosting import host_environment, host_worker, interpreter_without_us
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

SPEC = "tests.support.servers.exposing:server"


@pytest.fixture(scope="session")
def their_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interpreter_without_us(tmp_path_factory.mktemp("host") / "venv")


@pytest.fixture(scope="session")
def exposing(store_url: str, their_python: Path) -> Iterator[Deployment]:
    """A store, and the host's own worker. No worker of ours."""
    variables = host_environment(store_url, "exposed")
    with (
        deployed(store_url, "exposed", spec=SPEC, settings=variables) as found,
        host_worker(their_python, found, variables, "-E"),
    ):
        yield found


@pytest.fixture(scope="session")
def url(exposing: Deployment) -> str:
    return exposing.serve()


async def test_a_job_runs_where_it_always_ran(url: str) -> None:
    async with Wire(url) as wire:
        created = await wire.create("build_report", year=2026)
        last = (await follow(wire, created["taskId"]))[-1]
        assert last["status"] == "completed", last
        assert last["result"]["structuredContent"] == {"year": 2026, "region": "eu", "draft": False}
        there = await wire.create("reports_jobs_surroundings")
        last = (await follow(wire, there["taskId"]))[-1]
        assert last["result"]["structuredContent"]["ours"] is False
