"""A Django project with Celery: its worker, its database in a tool, its shared jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mcp_celery.common.redis_translation import celery_url
from tests.support.brokers import postgresql
from tests.support.deployment import Deployment, deployed
from tests.support.nodes import ROOT, EmbeddedStoreContainer, Pool
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

APP = "tests.support.django_host"


@contextmanager
def a_project(
    store: EmbeddedStoreContainer, database: str, pool: Pool, *, concurrency: int = 1, **variables: str
) -> Generator[Deployment]:
    """The project with its tables and a worker."""
    name = f"django-{pool}-{os.urandom(2).hex()}"
    settings = {
        "DJANGO_SETTINGS_MODULE": f"{APP}.settings",
        "DJANGO_HOST_DATABASE": database,
        "HOST_NAME": name,
        "HOST_BROKER": celery_url(store.url),
        **variables,
    }
    with deployed(store.url, name, spec=f"{APP}.mcp:server", settings=settings, app=APP) as found:
        migrate = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity=0"]
        subprocess.run(migrate, env=found.env(), cwd=ROOT, check=True, timeout=120)
        with found.worker(pool, concurrency=concurrency):
            yield found


@pytest.fixture(scope="module", params=["prefork", "threads"])
def project(
    request: pytest.FixtureRequest, store: EmbeddedStoreContainer, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Deployment]:
    database = str(tmp_path_factory.mktemp("django") / "orders.sqlite")
    with a_project(store, database, request.param) as found:
        yield found


@pytest.fixture(scope="module")
def url(project: Deployment) -> str:
    return project.serve()


@pytest.fixture
async def wire(url: str) -> AsyncGenerator[Wire]:
    async with Wire(url) as connected:
        yield connected


async def run(wire: Wire, tool: str, **arguments: Any) -> Any:
    ended = (await follow(wire, (await wire.create(tool, **arguments))["taskId"]))[-1]
    assert ended["status"] == "completed", ended
    return ended["result"]["structuredContent"]["result"]


@pytest.mark.smoke
@pytest.mark.shows("C9")
async def test_a_tool_uses_the_database_and_leaves_no_connection(wire: Wire) -> None:
    before = await run(wire, "count_orders", year=2026)
    assert await run(wire, "is_connected") is False
    assert await run(wire, "count_orders", year=2026) == before + 1
    wire.extension = False
    assert (await wire.call("count_orders", year=2026)).result["structuredContent"] == {"result": before + 2}
    assert (await wire.call("is_connected")).result["structuredContent"] == {"result": False}


@pytest.mark.shows("C9")
async def test_the_projects_shared_jobs_stay_with_its_own_app(wire: Wire) -> None:
    assert (await wire.call("whose_jobs")).result["structuredContent"] == {"result": "django-host"}


@pytest.mark.shows("C9")
def test_a_command_of_django_starts_no_server(project: Deployment, tmp_path: Path) -> None:
    code = "import sys, django; django.setup(); from tests.support.django_host.celery import app; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=project.env(), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"{APP}.celery" in done.stdout.split()
    assert f"{APP}.mcp" not in done.stdout.split()


def test_our_own_app_sets_django_up_in_its_worker(project: Deployment) -> None:
    """``celery -A mcp_celery worker`` for a Django project that has no Celery app; whoever only imports it does not."""
    code = """
import sys, mcp_celery
assert "celery.fixups.django" not in sys.modules
import mcp_celery.celery
mcp_celery.celery.app.loader.import_default_modules()
from django.apps import apps
assert apps.ready
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=project.env(), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.shows("C9")
async def test_results_in_the_projects_own_database_outlive_its_connections(store: EmbeddedStoreContainer) -> None:
    """``django-db`` with PostgreSQL. Stored and read in threads of our own."""
    with (
        postgresql() as database,
        a_project(store, database, "asyncio", concurrency=8, HOST_RESULTS="django-db") as project,
    ):
        async with Wire(project.serve()) as wire:
            counted = [await run(wire, "count_orders", year=2026) for _ in range(3)]
            assert counted == [1, 2, 3]
            for _ in range(2):
                with psycopg.connect(database, autocommit=True) as server:
                    server.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                    kept = server.execute("SELECT count(*) FROM django_celery_results_taskresult").fetchone()
                assert kept == (len(counted),)
                counted.append(await run(wire, "count_orders", year=2026))
            assert counted == [1, 2, 3, 4, 5]
