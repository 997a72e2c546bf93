"""Servers on uvloop. uvicorn uses it where it is installed, as ``fastapi[standard]`` installs it."""

from __future__ import annotations

import signal
import sys
from typing import Any

import psutil
import pytest

from tests.peers.conftest import interpreter_with
from tests.support.deployment import Deployment, answering_url, process
from tests.support.waiting import PATIENCE_SECONDS, soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio


async def test_a_server_on_uvloop_runs_tasks_and_outlives_its_connections(deployment: Deployment) -> None:
    (packages,) = interpreter_with("uvloop").parents[1].glob("lib/python*/site-packages")
    argv = [sys.executable, "-m", "mcp_celery", "serve", deployment.spec, "--port", "0"]
    log = deployment.folder / "server-on-uvloop.log"
    with process(argv, deployment.env(PYTHONPATH=str(packages)), log) as child:
        async with Wire(answering_url(log, child)) as wire:
            assert any("uvloop" in region.path for region in psutil.Process(child.pid).memory_maps())

            async def run(tool: str, **arguments: Any) -> list[dict[str, Any]]:
                return await soon(follow(wire, (await wire.create(tool, **arguments))["taskId"]))

            assert {"working", "completed"} == {one["status"] for one in await run("counting", steps=3)}
            large = (await run("large", result_bytes=200_000))[-1]["result"]
            assert large["content"][0]["text"] == "x" * 100_000

            # As a proxy or an operator ends connections that are idle.
            assert deployment.redis.client_kill_filter(_type="normal", skipme=True)
            assert (await run("slow_compute", seconds=0.0))[-1]["status"] == "completed"
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE_SECONDS) == -signal.SIGTERM
    assert "unavailable" not in log.read_text()
