"""The worker of somebody's own app, whose broker is restarted."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mcp_celery.common.redis_translation import celery_url
from tests.integration.conftest import Starter
from tests.support.deployment import Deployment, deployed
from tests.support.nodes import EmbeddedStoreContainer, ValkeyProcess
from tests.support.waiting import eventually
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

APP = "tests.support.host"
ADVISED: dict[str, Any] = {"worker_consumer": "mcp_celery.worker.consumer:Consumer"}
"""What docs/existing-app.md advises where Redis is the broker."""


@contextmanager
def restarted(store: EmbeddedStoreContainer, broker: ValkeyProcess) -> Generator[Deployment]:
    """Their app on a broker that a test restarts."""
    name = f"host-back-{os.urandom(2).hex()}"
    settings = {
        "HOST_NAME": name,
        "HOST_BROKER": celery_url(broker.url),
        "HOST_BACKEND": celery_url(store.url),
        "HOST_CONF": json.dumps(ADVISED),
        "MCP_CELERY_NAMESPACE": "",
        "C_FORCE_ROOT": "1",
    }
    with deployed(store.url, name, spec=f"{APP}.mcp:server", settings=settings, app=APP) as found:
        yield found


@pytest.mark.shows("C9")
async def test_a_worker_consumes_the_servers_queue_again_when_its_broker_is_back(
    store: EmbeddedStoreContainer, own: Starter
) -> None:
    broker = own.valkey("broker")
    with restarted(store, broker) as found, found.worker("threads", concurrency=1):
        async with Wire(found.serve()) as wire:
            assert await ended(wire) == "completed"
            broker.restart()
            await eventually(lambda: "Connection to broker lost" in found.logs()["worker-threads.log"])
            assert await ended(wire) == "completed"


@pytest.mark.shows("C9")
async def test_jobs_that_wait_in_a_threads_pool_while_the_broker_restarts_run_and_their_worker_continues(
    store: EmbeddedStoreContainer, own: Starter, tmp_path: Path
) -> None:
    broker = own.valkey("broker")
    gate = tmp_path / "gate"
    with restarted(store, broker) as found, found.worker("threads", concurrency=1):
        async with Wire(found.serve()) as wire:
            held = (await wire.create("hold", path=str(gate)))["taskId"]
            await eventually(Path(f"{gate}.held").exists, what="the first job runs")
            # Fewer than the worker may prefetch: it reads the queue while its connection is lost.
            waiting = [(await wire.create("add", a=number, b=1))["taskId"] for number in range(2)]

            def log() -> str:
                return found.logs()["worker-threads.log"]

            await eventually(lambda: log().count("] received") == 3, what="the worker has all jobs")
            broker.restart()
            await eventually(lambda: log().count("Connected to") == 2, what="the worker is connected again")
            gate.touch()
            for task in (held, *waiting):
                assert (await follow(wire, task))[-1]["status"] == "completed"
            await wire.create("add", a=1, b=1)
            await eventually(lambda: log().count(" succeeded in ") == 4 or "Unrecoverable error" in log())
            assert "Unrecoverable error" not in log()


async def ended(wire: Wire) -> str:
    """How a small task ends."""
    return (await follow(wire, (await wire.create("add", a=1, b=1))["taskId"]))[-1]["status"]
