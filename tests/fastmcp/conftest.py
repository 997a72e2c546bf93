"""FastMCP servers: each test module starts its own server, and a worker for it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from celery import Celery

from mcp_celery import Settings
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.embedded import EmbeddedStore
from tests.support.deployment import Deployment, deployed
from tests.support.leaks import eternal_keys
from tests.support.nodes import Pool
from tests.support.waiting import eventually

Deploy = Callable[[str], AbstractContextManager[Deployment]]


@pytest.fixture(scope="session")
def store_url() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="mcp-fastmcp-"))
    with EmbeddedStore.open(folder / "store") as store:
        yield store.url
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def deploy(store_url: str, pool: Pool) -> Deploy:
    """Start a worker of the server that a module of ``tests/support/servers`` has as ``mcp``."""

    @contextmanager
    def started(module: str) -> Generator[Deployment]:
        namespace = f"fastmcp-{pool}-{os.urandom(2).hex()}"
        spec = f"tests.support.servers.{module}:mcp"
        with deployed(store_url, namespace, spec=spec) as found, found.worker(pool):
            yield found

    return started


def shared_with(deployment: Deployment, **settings: Any) -> dict[str, Any]:
    """What makes an extension in this process one of a deployment's.

    Args:
        deployment: The deployment.
        **settings: Of the extension.
    """
    address = celery_url(deployment.store_url)
    return {
        "settings": Settings.load(redis_url=deployment.store_url, namespace=deployment.namespace, **settings),
        "celery": Celery("in-memory", broker=address, backend=address, set_as_current=False),
    }


@asynccontextmanager
async def served(app: Any, path: str) -> AsyncGenerator[str]:
    """An app of this process over HTTP."""
    runner = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    running = asyncio.create_task(runner.serve())
    try:
        await eventually(lambda: runner.started, what="the server listens")
        yield f"http://127.0.0.1:{runner.servers[0].sockets[0].getsockname()[1]}{path}"
    finally:
        runner.should_exit = True
        await running


@pytest.fixture(autouse=True)
def every_key_has_a_lifetime(store_url: str) -> Iterator[None]:
    """Fails a test that leaves a key of ours without a lifetime."""
    yield
    assert eternal_keys(store_url) == []
