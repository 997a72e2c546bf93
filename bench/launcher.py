"""Starts the measured systems. Each has a store of its own, to count apart."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

import redis

from bench import peer, rabbitmq
from bench.processes import free_port, is_listening, process
from bench.systems import (
    ADAPTER,
    FAR,
    FAR_PEER,
    FLOOR,
    KOMBU,
    LISTENED,
    LONE_PEER,
    MEASURED,
    PEER,
    PLAIN,
    PREFORK,
    RABBITMQ,
    SEALED,
    TUNED_PEER,
    WIDE,
    System,
)
from mcp_celery.common.encryption_keys import make_key
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.embedded import EmbeddedStore, find_store_binary

POOLS: Final[Mapping[str, Sequence[str]]] = {
    "asyncio": [],  # the default
    # Celery takes "-P prefork" as "nothing said"; and a hundred jobs at a time are meant for the asyncio pool.
    "prefork": ["-P", "processes", "-c", str(os.cpu_count() or 1)],
    "threads": ["-P", "threads"],
}
SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {
    SEALED: {"MCP_CELERY_ENCRYPTION_KEYS": make_key()},
    MEASURED: {"MCP_CELERY_TELEMETRY": "prometheus"},
    # All connections of the bench are one anonymous caller's.
    LISTENED: {"MCP_CELERY_MAX_STREAMS_PER_SCOPE": "10000"},
    KOMBU: {"MCP_CELERY_WORKER_TRANSPORT": "kombu"},
}
"""What differs from the defaults in a system of ours."""
WORKERS: Final[Mapping[str, Sequence[str]]] = {PREFORK: POOLS["prefork"], WIDE: ["-c", "1000"]}
"""The worker's arguments, where they are not those of the command line."""
DELAY_SECONDS: Final = 0.001
_TUNING: Final = {"FASTMCP_DOCKET_CONCURRENCY": "200", "FASTMCP_DOCKET_MINIMUM_CHECK_INTERVAL": "PT0.005S"}
_FOREIGN: Final = ("MCP_CELERY_", "CELERY_", "FASTMCP_")
"""Settings of the caller's own that a measurement must not see."""


class Launcher:
    """Starts systems in one folder.

    Args:
        folder: For logs and stores.
        pool: Pool of our worker.
        concurrency: Jobs at a time in our worker, None for its default.
        amqp: URL of the RabbitMQ.
    """

    def __init__(self, folder: Path, pool: str, concurrency: int | None, amqp: str) -> None:
        self._folder = folder
        self._worker = [*POOLS[pool], *([] if concurrency is None else ["-c", str(concurrency)])]
        self._amqp = amqp

    def start(self, name: str, stack: ExitStack) -> System:
        """Start a system: its store, its worker, its server.

        Args:
            name: Its column.
            stack: Stops what was started.
        """
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        place = _Place(folder, stack)
        if name == FLOOR:
            return place.serve(System(name, "", None), _serve_command("bench.apps.floor:server"), {})
        store = stack.enter_context(EmbeddedStore.open(folder / "store"))
        system = System(name, "", store.url, queue="mcp.bench")
        system.roots["store"] = int((folder / "store" / "store.pid").read_text())
        if name in (FAR, FAR_PEER):
            system.reached = place.delay(store.url)
        if name == PLAIN:
            return self._plain_celery(system, place)
        if name in (PEER, TUNED_PEER, LONE_PEER, FAR_PEER):
            return self._fastmcp(system, place)
        return self._ours(system, place)

    def store_version(self) -> str:
        """Name and version of the program that keeps each system's store."""
        with EmbeddedStore.open(self._folder / "version") as store, redis.Redis.from_url(store.url) as client:
            found = client.info("server")
        if "valkey_version" in found:
            return f"Valkey {found['valkey_version']}"
        return f"{'Redis' if 'redis' in find_store_binary().name else 'Valkey'} {found['redis_version']}"

    def _ours(self, system: System, place: _Place) -> System:
        server = "bench.apps.fastmcp_on_celery:server" if system.name == ADAPTER else "bench.apps.ours:server"
        settings = {
            "MCP_CELERY_REDIS_URL": system.reached or system.store or "",
            "MCP_CELERY_SERVER": server,
            **SETTINGS.get(system.name, {}),
        }
        is_ready = place.consumes_from(system)
        if system.name == RABBITMQ:
            namespace = f"bench-{uuid.uuid4().hex[:8]}"
            system.queue = f"mcp.{namespace}"
            settings |= {"MCP_CELERY_NAMESPACE": namespace, "MCP_CELERY_BROKER_URL": self._amqp}
            place.stack.callback(rabbitmq.delete, self._amqp, system.queue)
            is_ready = partial(rabbitmq.has_consumer, self._amqp, system.queue)
            if (broker := rabbitmq.process()) is not None:
                system.roots["broker"] = broker
        arguments = WORKERS.get(system.name, self._worker)
        argv = [sys.executable, "-m", "celery", "-A", "mcp_celery", "worker", *arguments]
        place.run(system, "worker", argv, settings, is_ready)
        return place.serve(system, _serve_command(server), settings)

    def _plain_celery(self, system: System, place: _Place) -> System:
        """A worker on prefork, Celery's default pool, and no server."""
        assert system.store is not None
        system.queue = "celery"
        argv = [sys.executable, "-m", "celery", "-A", "bench.apps.plain_celery", "worker"]
        place.run(system, "worker", argv, {"BENCH_STORE": celery_url(system.store)}, place.consumes_from(system))
        return system

    def _fastmcp(self, system: System, place: _Place) -> System:
        settings = {
            "FASTMCP_DOCKET_URL": system.reached or system.store or "",
            **(_TUNING if system.name == TUNED_PEER else {}),
        }
        if system.name != LONE_PEER:  # its server is a worker, too
            argv = [str(peer.PYTHON), "-m", "fastmcp_tasks.worker_cli", "worker", "bench/apps/fastmcp4.py"]
            log = place.log("worker")
            place.run(system, "worker", argv, settings, lambda: "Concurrency:" in log.read_text())
        return place.serve(system, [str(peer.PYTHON), "-m", "bench.apps.fastmcp4"], settings)


class _Place:
    """Where one system runs: a folder for its logs, and what ends its processes."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack

    def log(self, role: str) -> Path:
        return self.folder / f"{role}.log"

    def run(
        self, system: System, role: str, argv: Sequence[str], settings: Mapping[str, str], is_ready: Callable[[], bool]
    ) -> None:
        started = process(argv, _environment(settings), self.log(role), is_ready)
        system.roots[role] = self.stack.enter_context(started).pid

    def serve(self, system: System, argv: Sequence[str], settings: Mapping[str, str]) -> System:
        port = free_port()
        self.run(system, "server", [*argv, str(port)], settings, lambda: is_listening(port))
        system.url = f"http://127.0.0.1:{port}/mcp"
        return system

    def delay(self, url: str) -> str:
        """Put a proxy before a store; returns the URL of the proxy. Its processor time counts for no role."""
        socket = self.folder / "far.sock"
        target = unquote(urlsplit(url).path)
        argv = [sys.executable, "-m", "bench.delay", str(socket), target, str(DELAY_SECONDS)]
        self.stack.enter_context(process(argv, _environment({}), self.log("delay"), socket.is_socket))
        return f"unix://{socket}?db=0"

    def consumes_from(self, system: System) -> Callable[[], bool]:
        """Whether a worker consumes a queue of a store. Its log says so too, but only above Celery's default level."""
        client = self.stack.enter_context(system.redis())

        def consumes() -> bool:
            clients: list[dict[str, str]] = cast("Any", client).client_list()
            return any(one["cmd"] == "brpop" for one in clients)

        return consumes


def _serve_command(server: str) -> list[str]:
    return [sys.executable, "-m", "mcp_celery", "serve", server, "--port"]


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {**inherited, "PYTHONUNBUFFERED": "1", **settings}
