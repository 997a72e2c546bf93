"""Each test of the contract runs in memory and in a real Redis."""

import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mcp_celery.embedded import EmbeddedStore
from mcp_celery.engine import TaskEngine
from mcp_celery.store.scripts import SCRIPTS
from tests.support.clusters import Cluster, nodes_of
from tests.support.declared_keys import checked, no_refusals
from tests.support.leaks import no_eternal_keys, no_processes_left
from tests.support.nodes import short_folder
from tests.support.own_store import OwnStore
from tests.support.worlds import MemoryWorld, RedisWorld, Watchful, World, engine_of, redis_world

NOT_ON_A_CLUSTER = {
    "test_operators": "Celery has no broker for clusters",
    "test_redis_resets": "it reaches one server through a proxy",
    "test_worker_transport": "Celery has no broker for clusters",
    "test_all_calls_that_waited_on_a_reset_connection_are_made_again": "it reaches one server through a proxy",
    "test_a_key_without_a_lifetime_is_found_by_its_literal_prefix": "its keys have no hash tag",
    "test_a_result_that_is_stored_with_its_task_makes_one_webhook": "the name of its result has no hash tag",
    "test_a_result_that_is_stored_again_is_taken_again": "the name of its result has no hash tag",
    "test_a_task_with_a_result_leaves_no_unclaimed_job": "the name of its result has no hash tag",
}
"""Modules and tests that ``--cluster`` leaves out, and why."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--cluster"):
        return
    for item in items:
        names = (item.path.stem, getattr(item, "originalname", item.name))
        reason = next((NOT_ON_A_CLUSTER[name] for name in names if name in NOT_ON_A_CLUSTER), None)
        if "proxy" in getattr(item, "fixturenames", ()):
            reason = NOT_ON_A_CLUSTER["test_redis_resets"]
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def checked_scripts() -> Generator[None]:
    """All scripts refuse keys that their callers do not declare."""
    plain = dict(SCRIPTS)
    SCRIPTS.update(checked(plain))
    yield
    SCRIPTS.update(plain)


@pytest.fixture(autouse=True)
def all_keys_are_declared(checked_scripts: None) -> Generator[None]:
    with no_refusals():
        yield


@pytest.fixture(scope="session")
def store_url(request: pytest.FixtureRequest) -> Generator[str]:
    """A Redis that no test stops or empties; with ``--cluster`` a cluster."""
    if request.config.getoption("--cluster"):
        with short_folder() as folder, no_processes_left(folder), ExitStack() as nodes:
            yield Cluster(folder, nodes_of(nodes)).url
        return
    with (
        tempfile.TemporaryDirectory(prefix="mcpc-") as folder,
        no_processes_left(Path(folder).resolve(), children=False),
        EmbeddedStore.open(Path(folder) / "data") as store,
    ):
        yield store.url


@pytest.fixture
def own_store() -> Generator[OwnStore]:
    with tempfile.TemporaryDirectory(prefix="mcpc-") as folder, no_processes_left(Path(folder).resolve()):
        store = OwnStore(Path(folder) / "a project's 50% data")
        try:
            yield store
        finally:
            store.close()


@pytest.fixture
async def own_world(own_store: OwnStore) -> AsyncGenerator[RedisWorld]:
    """A patient world over the test's own store."""
    world = RedisWorld(own_store.url)
    try:
        with no_eternal_keys(own_store.url, [world.prefix]):
            yield world
            own_store.answer_again()
    finally:
        await world.aclose()


@pytest.fixture
def results_apart() -> bool:
    """Whether Celery's result backend is another server than the store; parametrize to have both."""
    return False


@pytest.fixture(params=["memory", "redis"])
async def world(request: pytest.FixtureRequest, results_apart: bool) -> AsyncGenerator[World]:
    if request.param == "memory":
        yield MemoryWorld(results_apart=results_apart)
        return
    async with redis_world(request.getfixturevalue("store_url"), results_apart=results_apart) as world:
        yield world


@pytest.fixture
async def in_redis(store_url: str) -> AsyncGenerator[RedisWorld]:
    """For what only Redis has."""
    async with redis_world(store_url) as world:
        yield world


@pytest.fixture
def queue(world: World) -> Watchful:
    return Watchful(world.store)


@pytest.fixture
def engine(world: World, queue: Watchful) -> TaskEngine:
    return engine_of(world, queue)
