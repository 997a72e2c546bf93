"""A Redis Cluster keeps results beside the records; a broker is all that is needed besides."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from mcp_celery import Settings
from tests.integration.conftest import TOOLS, Starter
from tests.integration.test_redis_urls import valkey_binary
from tests.support.brokers import delete_queues, rabbitmq
from tests.support.clusters import Cluster
from tests.support.command_line import refused
from tests.support.deployment import Deployment, deployed
from tests.support.live import Gate
from tests.support.nodes import ROOT, environment
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

JOB_SECONDS: Final = 120.0
COMMAND_SECONDS: Final = 120.0
RESULT: Final = ":celery-task-meta-"
PLAIN: Final = "tests.support.servers.plain_tasks:server"
NAMESPACE: Final = "beside"

Broker = Callable[[], str]


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest, own: Starter, tmp_path: Path) -> Generator[str]:
    """The URL of a broker that is no cluster."""
    if request.param == "redis":
        yield own.valkey("broker").url
        return
    with rabbitmq(tmp_path) as url:
        yield url
        delete_queues(url, f"mcp.{NAMESPACE}")


@contextmanager
def one_cluster(cluster: Cluster, broker_url: str, spec: str, **settings: str) -> Generator[Deployment]:
    """A deployment that keeps everything but its messages in a cluster."""
    variables = {"MCP_CELERY_BROKER_URL": broker_url, "MCP_CELERY_HEARTBEAT_MS": "1000", **settings}
    with deployed(cluster.url, NAMESPACE, spec=spec, settings=variables) as deployment:
        yield deployment


def lifetimes(cluster: Cluster) -> dict[str, int]:
    """All keys of a cluster, and how long each still lives, in ms."""
    found: dict[str, int] = {}
    for index in range(len(cluster.nodes)):
        with cluster.admin(index) as node:
            found |= {key: node.pttl(key) for key in node.keys("*")}
    return found


def said_by(variables: Mapping[str, str], program: str) -> object:
    """What another process prints, a Python literal."""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(**variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=True,
    )
    return ast.literal_eval(ended.stdout)


async def test_a_cluster_keeps_results_and_any_broker_is_enough_beside_it(
    own: Starter, broker: str, gate: Gate
) -> None:
    cluster = own.cluster()
    with one_cluster(cluster, broker, TOOLS) as deployment:
        settings = Settings.load(
            redis_url=cluster.url, broker_url=broker, namespace=NAMESPACE, heartbeat_ms=1_000, store_timeout_ms=5_000
        )
        worker = await asyncio.to_thread(own.worker, TOOLS, "asyncio", settings)
        url = await asyncio.to_thread(deployment.serve)
        async with Wire(url) as wire:
            task_id = (await wire.create("add", a=1, b=2))["taskId"]
            assert (await soon(follow(wire, task_id), seconds=JOB_SECONDS))[-1]["status"] == "completed"
            assert (await wire.get(task_id))["result"]["structuredContent"] == {"result": 3}

            found = lifetimes(cluster)
            (key,) = [key for key in found if RESULT in key]
            assert key.startswith(f"{{mcp_celery:{NAMESPACE}}}:")
            (record,) = [one for one in found if one.endswith(f":{task_id}")]
            assert abs(found[key] - found[record]) < 1_000, "result and record were not stored in one step"
            assert [one for one, left in found.items() if left == -1] == []
            with cluster.admin(cluster.node_of(key)) as node:
                # Every node of a cluster gets what is published otherwise than to a shard.
                assert "cmdstat_publish" not in node.info("commandstats"), "the result was published"
            (job_id,) = [key.partition(RESULT)[2]]
            ask = f"from mcp_celery.default_app import default_app as app; print([app.AsyncResult({job_id!r}).state])"
            state = await asyncio.to_thread(said_by, deployment.env(), ask)
            assert state == ["SUCCESS"]

            held = (await wire.create("report_and_hold", gate=str(gate)))["taskId"]
            await gate.reached()
            await asyncio.to_thread(worker.kill_all)
            second = await asyncio.to_thread(own.worker, TOOLS, "threads", settings)
            ended = (await soon(follow(wire, held), seconds=JOB_SECONDS))[-1]
            assert (ended["status"], "has died" in ended["error"]["message"]) == ("failed", True)
            failing = (await wire.create("refuse", message="no", detail="x"))["taskId"]
            last = (await soon(follow(wire, failing), seconds=JOB_SECONDS))[-1]
            assert (last["status"], last["error"]["message"]) == ("failed", "no")
            assert "CROSSSLOT" not in "\n".join([worker.logs(), second.logs(), *deployment.logs().values()])


async def test_other_tasks_of_the_app_and_chords_keep_their_results_there_too(own: Starter) -> None:
    cluster, redis = own.cluster(), own.valkey("broker")
    with one_cluster(cluster, redis.url, PLAIN) as deployment, deployment.worker("threads"):
        program = (
            "from celery import chord, group\n"
            "from tests.support.servers.plain_tasks import double, total\n"
            "failed = double.delay(-1)\n"
            "print([double.delay(4).get(timeout=60), chord([double.s(1), double.s(2)])(total.s()).get(timeout=60),\n"
            "       group([double.s(5), double.s(6)])().get(timeout=60),\n"
            "       type(failed.get(timeout=60, propagate=False)).__name__, failed.state])"
        )
        said = await asyncio.to_thread(said_by, deployment.env(MCP_CELERY_SERVER=PLAIN), program)
        assert said == [8, 6, [10, 12], "ValueError", "FAILURE"]
        left = lifetimes(cluster)
        assert {key for key in left if RESULT in key} == {key for key in left if key.startswith("{mcp_celery}:")}
        assert [key for key, lives in left.items() if lives == -1] == []


@pytest.mark.parametrize("server", ["installed", "valkey"])
async def test_a_result_waits_for_the_replica_of_a_master_that_is_killed(own: Starter, gate: Gate, server: str) -> None:
    binary = valkey_binary() if server == "valkey" else None
    cluster, redis = own.cluster(replicas=True, binary=binary), own.valkey("broker")
    with one_cluster(cluster, redis.url, TOOLS) as deployment, deployment.worker("asyncio"):
        url = await asyncio.to_thread(deployment.serve)
        async with Wire(url) as wire:
            held = (await wire.create("report_and_hold", gate=str(gate)))["taskId"]
            await gate.reached()
            master = cluster.node_of(f"{{mcp_celery:{NAMESPACE}}}:any")
            with cluster.admin(master) as node:
                assert node.wait(1, 5_000) == 1
            await asyncio.to_thread(cluster.nodes[master].kill)
            gate.open()

            async def completed() -> bool:
                answer = await wire.ask("tasks/get", {"taskId": held})
                return "error" not in answer.message and answer.result["status"] == "completed"

            await eventually(completed, what="the task is completed", seconds=JOB_SECONDS)
            assert len(gate.arrived()) == 1


@pytest.mark.smoke
def test_exposed_jobs_need_a_result_backend_of_their_own() -> None:
    settings = {
        "MCP_CELERY_REDIS_URL": "redis+cluster://127.0.0.1:1",
        "MCP_CELERY_BROKER_URL": "redis://127.0.0.1:1",
        "MCP_CELERY_NAMESPACE": NAMESPACE,
    }
    ended = refused("mcp_celery", "serve", "--port=0", "tests.support.servers.exposes_in_own_app:server", **settings)
    assert "set MCP_CELERY_RESULT_BACKEND to the result backend of these workers" in ended.stderr
