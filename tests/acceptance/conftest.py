"""A store, a worker for each pool, and servers: shared by the acceptance tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_celery.embedded import EmbeddedStore
from tests.support.deployment import Deployment, deployed
from tests.support.leaks import eternal_keys
from tests.support.nodes import Pool


@pytest.fixture(scope="session")
def store_url() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="mcp-acc-"))
    with EmbeddedStore.open(folder / "store") as store:
        yield store.url
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def deployment(store_url: str, pool: Pool) -> Iterator[Deployment]:
    """A store and one worker, shared by all tests of a pool."""
    with deployed(store_url, f"acc-{pool}") as found, found.worker(pool):
        yield found


@pytest.fixture
def idle_deployment(store_url: str) -> Iterator[Deployment]:
    """A store, but no worker: what is submitted stays queued until the test starts one."""
    with deployed(store_url, f"idle-{os.urandom(4).hex()}") as found:
        yield found


@pytest.fixture(scope="session")
def url(deployment: Deployment) -> str:
    """A server for anybody."""
    return deployment.serve()


@pytest.fixture(scope="session")
def guarded_url(deployment: Deployment) -> str:
    """A replica that asks for a bearer token."""
    return deployment.serve("guarded")


@pytest.fixture(autouse=True)
def every_key_has_a_lifetime(store_url: str) -> Iterator[None]:
    """Fails a test that leaves a key of ours without a lifetime."""
    yield
    assert eternal_keys(store_url) == []
