"""What the tests of deaths share: a namespace in which a death is noticed soon, on either broker."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Final, cast

import pytest

from mcp_celery import Settings
from tests.integration.conftest import settings_for
from tests.support.brokers import delete_queues
from tests.support.nodes import EmbeddedStoreContainer, Pool

HEARTBEAT_MS: Final = 300


@pytest.fixture
def broker() -> str:
    """Which broker a test uses; parametrize it to have it use both."""
    return "redis"


@pytest.fixture
def quick(
    store: EmbeddedStoreContainer, pool: Pool, broker: str, request: pytest.FixtureRequest
) -> Generator[Settings]:
    """A namespace of the test's own, in which a death is noticed soon."""
    test = cast(pytest.Item, request.node).name
    name = test.partition("[")[0].removeprefix("test_").replace("_", "-")[:40]
    url = None if broker == "redis" else request.getfixturevalue("rabbitmq_url")
    settings = settings_for(store, f"{name}-{pool}-{os.urandom(4).hex()}", heartbeat_ms=HEARTBEAT_MS, broker_url=url)
    yield settings
    if url is not None:
        delete_queues(url, f"mcp.{settings.namespace}")
