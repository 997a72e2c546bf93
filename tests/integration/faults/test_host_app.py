"""The worker of somebody's own app, whose broker is restarted."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from mcp_celery.common.redis_translation import celery_url
from tests.integration.conftest import Starter
from tests.support.deployment import deployed
from tests.support.nodes import EmbeddedStoreContainer
from tests.support.waiting import eventually
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

APP = "tests.support.host"
ADVISED: dict[str, Any] = {"worker_consumer": "mcp_celery.worker.consumer:Consumer"}
"""What docs/existing-app.md advises where Redis is the broker."""


@pytest.mark.shows("C9")
async def test_a_worker_consumes_the_servers_queue_again_when_its_broker_is_back(
    store: EmbeddedStoreContainer, own: Starter
) -> None:
    broker = own.valkey("broker")
    name = f"host-back-{os.urandom(2).hex()}"
    settings = {
        "HOST_NAME": name,
        "HOST_BROKER": celery_url(broker.url),
        "HOST_BACKEND": celery_url(store.url),
        "HOST_CONF": json.dumps(ADVISED),
        "MCP_CELERY_NAMESPACE": "",
        "C_FORCE_ROOT": "1",
    }
    with (
        deployed(store.url, name, spec=f"{APP}.mcp:server", settings=settings, app=APP) as found,
        found.worker("threads", concurrency=1),
    ):
        async with Wire(found.serve()) as wire:
            assert await ended(wire) == "completed"
            broker.restart()
            await eventually(lambda: "Connection to broker lost" in found.logs()["worker-threads.log"])
            assert await ended(wire) == "completed"


async def ended(wire: Wire) -> str:
    """How a small task ends."""
    return (await follow(wire, (await wire.create("add", a=1, b=1))["taskId"]))[-1]["status"]
