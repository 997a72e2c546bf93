"""A service with one shard in cluster mode is store, broker and result backend, as managed services offer it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import pytest

from mcp_celery import Settings
from mcp_celery.broker.cluster_mode import NO_TAG, SEVERAL_SHARDS
from mcp_celery.broker.publisher import unusable_broker
from mcp_celery.broker.results import CeleryResults
from tests.integration.conftest import JOB_SECONDS, TOOLS, Starter, cancel_a_running_job
from tests.integration.test_redis_urls import valkey_binary
from tests.support.command_line import refused
from tests.support.deployment import deployed
from tests.support.live import host_app
from tests.support.nodes import Pool
from tests.support.servers.deploys import VERSION_VARIABLE
from tests.support.waiting import soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

TAGGED: Final = "{mcp_celery"
ETERNAL_OF_KOMBU: Final = ("_kombu.", "unacked", "mcp.")
HOSTED: Final = "tests.support.servers.deploys_hosted"


def says_what_to_set(argv: Sequence[str], variables: dict[str, str], advice: str) -> None:
    """Check that a command ends with one line."""
    ended = refused(*argv, **variables)
    (line,) = [line for line in (ended.stdout + ended.stderr).splitlines() if "cluster mode" in line]
    assert advice in line


@pytest.mark.each_pool
async def test_tasks_run_where_store_and_broker_are_one_shard_in_cluster_mode(own: Starter, pool: Pool) -> None:
    # One pool with Valkey is enough.
    cluster = own.cluster(shards=1, binary=valkey_binary() if pool == "threads" else None)
    url = f"redis://{cluster.addresses[0]}/0"
    settings = {"MCP_CELERY_HASH_TAGS": "true"}
    with deployed(url, f"shard-{pool}", spec=TOOLS, settings=settings) as deployment, deployment.worker(pool):
        async with Wire(await asyncio.to_thread(deployment.serve)) as wire:
            task_ids = [(await wire.create("add", a=number, b=1))["taskId"] for number in range(5)]
            for task_id in task_ids:
                assert (await soon(follow(wire, task_id), seconds=JOB_SECONDS))[-1]["status"] == "completed"
            await cancel_a_running_job(wire)
        logs = "\n".join(deployment.logs().values())
        assert "CROSSSLOT" not in logs
        assert "goes on without" not in logs
    with cluster.admin(0) as node:
        keys: list[str] = node.keys("*")
        assert [key for key in keys if not key.startswith(TAGGED)] == []
        eternal = [key for key in keys if node.pttl(key) == -1]
        assert [key for key in eternal if not key.partition(":")[2].startswith(ETERNAL_OF_KOMBU)] == []


def test_a_server_and_a_worker_say_what_to_set_for_cluster_mode(own: Starter) -> None:
    cluster = own.cluster(shards=1)
    url = f"redis://{cluster.addresses[0]}/0"
    serve = ("mcp_celery", "serve", "--port=0", TOOLS)
    for variables, advice in [
        ({"MCP_CELERY_REDIS_URL": url}, "MCP_CELERY_HASH_TAGS=true"),
        ({"MCP_CELERY_REDIS_URL": cluster.url, "MCP_CELERY_BROKER_URL": url}, NO_TAG),
    ]:
        says_what_to_set(serve, variables, advice)
    argv = ("celery", "-A", HOSTED, "worker", "-P", "threads", "--without-mingle")
    settings = {"MCP_CELERY_REDIS_URL": cluster.url, "MCP_CELERY_BROKER_URL": url, VERSION_VARIABLE: "old"}
    says_what_to_set(argv, settings, NO_TAG)


@pytest.mark.smoke
def test_a_cluster_of_several_shards_is_no_broker(own: Starter) -> None:
    cluster = own.cluster()
    with host_app(Settings.load(broker_url=f"redis://{cluster.addresses[0]}/0", hash_tags=True)) as app:
        found = unusable_broker(app, "the broker", timeout_seconds=10)
    assert found is not None
    assert (found.reason, found.is_misfit) == (SEVERAL_SHARDS, True)


async def test_results_of_a_host_are_read_where_their_names_have_no_tag(own: Starter) -> None:
    cluster = own.cluster(shards=1)
    with host_app(Settings.load(redis_url=f"redis://{cluster.addresses[0]}/0")) as app:
        backend: Any = app.backend
        for number in range(3):
            backend.mark_as_done(f"job-{number}", number)
        results = CeleryResults(app, timeout_seconds=10)
        found = await results.read_many(["job-0", "job-1", "job-2", "none"])
        results.close()
    assert [None if one is None else one.value for one in found.values()] == [0, 1, 2, None]
