"""Queues of every kind: servers and workers declare them alike, and what RabbitMQ refuses is explained in one line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import kombu
import pytest

from mcp_celery import Settings
from mcp_celery.common.redis_translation import celery_url
from tests.integration.conftest import Starter, lines
from tests.support.brokers import PATIENT_SQLITE, delete_queues
from tests.support.deployment import Deployment, deployed
from tests.support.nodes import ROOT, EmbeddedStoreContainer, WorkerProcess
from tests.support.programs import forked_command
from tests.support.waiting import soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

SERVER: Final = "tests.support.servers.queued:server"
SETTINGS_MODULE: Final = "tests.support.servers.queued_settings"
HOST: Final = "tests.support.host"
QUORUM: Final = {"x-queue-type": "quorum"}
JOB_SECONDS: Final = 120.0
COMMAND_SECONDS: Final = 120.0


@dataclass
class Place:
    """Servers and workers of ``mcp_celery``'s own app, on one broker, without a namespace in their settings."""

    name: str
    store_url: str
    broker_url: str
    own: Starter
    stack: ExitStack
    conf: dict[str, Any] = field(default_factory=dict[str, Any])
    variables: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def queue(self) -> str:
        return f"mcp.{self.name}"

    def env(self) -> dict[str, str]:
        return {
            "CELERY_CONFIG_MODULE": SETTINGS_MODULE,
            "QUEUED_NAME": self.name,
            "QUEUED_SETTINGS": json.dumps(self.conf),
            **self.variables,
        }

    def deployment(self) -> Deployment:
        settings = {
            **self.env(),
            "MCP_CELERY_NAMESPACE": "",
            "MCP_CELERY_BROKER_URL": self.broker_url,
            "MCP_CELERY_PUBLISH_TIMEOUT_MS": "60000",
        }
        return self.stack.enter_context(deployed(self.store_url, self.name, spec=SERVER, settings=settings))

    def worker(self, *flags: str) -> WorkerProcess:
        settings = Settings.load(redis_url=self.store_url, broker_url=self.broker_url)
        return self.own.worker(SERVER, "asyncio", settings, concurrency=None, env=self.env(), flags=flags)


@pytest.fixture
def name() -> str:
    return f"queued-{os.urandom(3).hex()}"


@pytest.fixture
def stack() -> Generator[ExitStack]:
    with ExitStack() as found:
        yield found


@pytest.fixture
def rabbit(
    own: Starter, store: EmbeddedStoreContainer, rabbitmq_url: str, name: str, stack: ExitStack
) -> Generator[Place]:
    place = Place(name, store.url, rabbitmq_url, own, stack)
    try:
        yield place
    finally:
        delete_queues(rabbitmq_url, place.queue, f"{name}-dead")


def declared(url: str, queue: str, arguments: Mapping[str, Any] | None = None) -> None:
    """Declare a queue as somebody else would. RabbitMQ refuses if it exists with other arguments."""
    with kombu.Connection(url) as connection:
        exchange = kombu.Exchange(queue, "direct")
        kombu.Queue(queue, exchange, queue, queue_arguments=dict(arguments or {}))(connection.channel()).declare()


async def run(wire: Wire, tool: str, **arguments: Any) -> dict[str, Any]:
    task_id = (await wire.create(tool, **arguments))["taskId"]
    return (await soon(follow(wire, task_id), seconds=JOB_SECONDS))[-1]


async def run_both(place: Place, tries: Path) -> None:
    """Run a job, and one that is tried again."""
    async with Wire(place.deployment().serve()) as wire:
        assert (await run(wire, "add", a=2, b=3))["result"]["structuredContent"] == {"result": 5}
        assert (await run(wire, "fails_at_first", path=str(tries)))["status"] == "completed"
    assert len(lines(tries)) == 2


TOPIC: Final = {"task_default_queue_type": "quorum", "task_default_exchange_type": "topic"}


@pytest.mark.shows("C9")
@pytest.mark.parametrize(
    "conf",
    [
        pytest.param({"task_default_queue_type": "quorum"}, id="quorum", marks=pytest.mark.smoke),
        pytest.param(TOPIC, id="quorum-topic"),
        pytest.param({"task_default_exchange": "jobs", "task_default_routing_key": "ours"}, id="exchange"),
    ],
)
async def test_servers_and_workers_declare_the_queue_alike(rabbit: Place, conf: dict[str, Any], tmp_path: Path) -> None:
    rabbit.conf = dict(conf)
    if "task_default_exchange" in conf:
        rabbit.conf |= {"task_default_exchange": rabbit.name}
    worker = rabbit.worker()
    await run_both(rabbit, tmp_path / "tries")
    fixed = (
        "the number of slots stays 100: RabbitMQ does not let a consumer of a quorum queue change what it prefetches"
    )
    assert (fixed in worker.logs()) is ("task_default_queue_type" in conf)


@pytest.mark.shows("C9")
async def test_their_own_entry_of_task_queues_is_declared_as_it_is(rabbit: Place, tmp_path: Path) -> None:
    dead = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"{rabbit.name}-dead", "x-max-length": 500}
    rabbit.conf = {"task_queues": {rabbit.queue: {"routing_key": rabbit.queue, "queue_arguments": {**QUORUM, **dead}}}}
    rabbit.worker()
    await run_both(rabbit, tmp_path / "tries")
    with pytest.raises(Exception, match=r"x-max-length|x-dead-letter"):
        declared(rabbit.broker_url, rabbit.queue, QUORUM)


@pytest.mark.shows("C9")
async def test_a_worker_consumes_the_servers_queue_beside_those_of_task_queues(rabbit: Place, tmp_path: Path) -> None:
    other = f"{rabbit.name}-dead"
    rabbit.conf = {"task_queues": {other: {"routing_key": other}}, "task_default_queue_type": "quorum"}
    rabbit.worker()
    await run_both(rabbit, tmp_path / "tries")


def refusal_of_worker(place: Place, app: str = "mcp_celery", **env: str) -> str:
    """What a worker that ends by itself says in its last lines; there is one of ours."""
    deployment = place.deployment()
    argv = [*forked_command("celery"), "-A", app, "worker", "--without-mingle", "--pool=threads", "-l", "INFO"]
    ran = subprocess.run(
        argv,
        env=deployment.env(MCP_CELERY_SERVER=SERVER, **env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_SECONDS,
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 1, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if "the worker ends: " in line]
    return line.partition("the worker ends: ")[2]


EXISTING: Final = {**QUORUM, "x-max-length": 5}
BOTH_SETS: Final = (
    "exists in RabbitMQ with other arguments (x-max-length=5, x-queue-type='quorum') than the settings declare "
    "(x-max-priority=9)"
)


@pytest.mark.smoke
@pytest.mark.shows("C9")
async def test_a_queue_that_exists_with_other_arguments_is_explained(rabbit: Place) -> None:
    rabbit.conf = {"task_queue_max_priority": 9}
    declared(rabbit.broker_url, rabbit.queue, EXISTING)
    said = refusal_of_worker(rabbit)
    assert f"the queue {rabbit.queue!r} {BOTH_SETS}" in said
    assert "Delete the queue (its messages are lost), or change task_queues" in said
    deployment = rabbit.deployment()
    async with Wire(deployment.serve()) as wire:
        for _ in range(2):
            refused = (await wire.call("add", a=1, b=2)).error
            assert refused["code"] == -32603
            assert "does not fit this server's settings" in refused["message"]
        (log,) = deployment.logs().values()
        assert log.count(BOTH_SETS) == 2
        assert "Traceback" not in log
        # As the line says: delete it, and nothing has to be started again.
        delete_queues(rabbit.broker_url, rabbit.queue)
        assert (await wire.create("add", a=1, b=2))["status"] == "working"


@pytest.mark.shows("C9")
def test_a_queue_that_exists_with_other_arguments_ends_the_worker_of_a_host(
    rabbit: Place, store: EmbeddedStoreContainer
) -> None:
    declared(rabbit.broker_url, rabbit.queue, EXISTING)
    url = celery_url(store.url)
    host = {"HOST_NAME": rabbit.name, "HOST_BROKER": rabbit.broker_url, "HOST_BACKEND": url, "CELERY_CONFIG_MODULE": ""}
    host["HOST_CONF"] = json.dumps({"broker_channel_error_retry": True})
    rabbit.variables = {**host, "MCP_CELERY_KEY_PREFIX": f"mcp_celery:{rabbit.name}"}
    try:
        assert BOTH_SETS in refusal_of_worker(rabbit, HOST)
    finally:
        delete_queues(rabbit.broker_url, rabbit.name, f"{rabbit.name}-slow", f"{rabbit.name}-night")


@pytest.mark.smoke
@pytest.mark.shows("C9")
@pytest.mark.parametrize(
    ("conf", "variables", "reason"),
    [
        ({}, {"QUEUED_PRIORITY": "7"}, "priority=7 of tool:add (TaskConfig, task_routes or task_default_priority)"),
        ({"task_default_priority": 3}, {}, "priority=3 of tool:"),
        ({"task_queue_max_priority": 9}, {}, "task_queue_max_priority or x-max-priority=9"),
    ],
    ids=["TaskConfig", "task_default_priority", "task_queue_max_priority"],
)
def test_priorities_of_a_quorum_queue_are_refused_at_start(
    rabbit: Place, conf: dict[str, Any], variables: dict[str, str], reason: str
) -> None:
    rabbit.conf, rabbit.variables = {"task_default_queue_type": "quorum", **conf}, variables
    said = refusal_of_worker(rabbit)
    assert said.startswith(reason), said
    assert "has priorities on classic queues only" in said
    deployment = rabbit.deployment()
    argv = [*forked_command("mcp_celery"), "serve", SERVER, "--port", "0"]
    ran = subprocess.run(
        argv, env=deployment.env(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
    )
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    assert f"Error: {said}" in ran.stderr


@pytest.mark.shows("C9")
@pytest.mark.parametrize("broker", ["filesystem", "sqlite"])
async def test_brokers_without_queue_types_take_the_same_settings(
    own: Starter, store: EmbeddedStoreContainer, name: str, stack: ExitStack, tmp_path: Path, broker: str
) -> None:
    url = "filesystem://" if broker == "filesystem" else f"sqla+sqlite:///{tmp_path}/broker.db"
    (messages := tmp_path / "messages").mkdir()
    folders = {"data_folder_in": str(messages), "data_folder_out": str(messages), "control_folder": str(tmp_path / "c")}
    conf = {"task_default_queue_type": "quorum", "task_queue_max_priority": 9, "task_default_priority": 3}
    conf |= {"broker_transport_options": folders if broker == "filesystem" else PATIENT_SQLITE}
    place = Place(name, store.url, url, own, stack, conf)
    place.worker()
    await run_both(place, tmp_path / "tries")
