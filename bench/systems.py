"""The measured systems: the floor, mcp_celery, and FastMCP 4 on either. Each has a store of its own, to count apart."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import psutil
import redis

from bench import peer
from bench.processes import free_port, is_listening, process
from mcp_celery.common.encryption_keys import make_key
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.embedded import EmbeddedStore

FLOOR: Final = "floor"
OURS: Final = "mcp_celery"
SEALED: Final = "mcp_celery, encryption keys"
MEASURED: Final = "mcp_celery, metrics"
KOMBU: Final = "mcp_celery, kombu's transport"
PLAIN: Final = "plain Celery"
PEER: Final = "FastMCP 4"
TUNED_PEER: Final = "FastMCP 4, tuned"
LONE_PEER: Final = "FastMCP 4, one worker"
ADAPTER: Final = "FastMCP 4 on mcp_celery"

POOLS: Final[Mapping[str, Sequence[str]]] = {
    "asyncio": [],  # the default
    # Celery takes "-P prefork" as "nothing said"; and a hundred jobs at a time are meant for the asyncio pool.
    "prefork": ["-P", "processes", "-c", str(os.cpu_count() or 1)],
    "threads": ["-P", "threads"],
}
_TUNING: Final = {"FASTMCP_DOCKET_CONCURRENCY": "200", "FASTMCP_DOCKET_MINIMUM_CHECK_INTERVAL": "PT0.005S"}
_FOREIGN: Final = ("MCP_CELERY_", "CELERY_", "FASTMCP_")
"""Settings of the caller's own that a measurement must not see."""


@dataclass(slots=True)
class System:
    """A running system.

    Attributes:
        name: Its column.
        url: The server's endpoint.
        store: URL of its store, None for the floor.
        roots: Its processes by role; their children belong to them.
    """

    name: str
    url: str
    store: str | None
    roots: dict[str, int] = field(default_factory=dict[str, int])

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Its processes by role, children included."""
        found: dict[str, list[psutil.Process]] = {}
        for role, pid in self.roots.items():
            root = psutil.Process(pid)
            found[role] = [root, *root.children(recursive=True)]
        return found

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time that each role has used so far, of user and system."""
        return {
            role: sum(sum(one.cpu_times()[:2]) for one in processes) for role, processes in self.processes().items()
        }

    def memory_bytes(self) -> dict[str, tuple[int, int]]:
        """Memory of each role: proportional set size (shared pages counted once), and resident set size."""
        found: dict[str, tuple[int, int]] = {}
        for role, processes in self.processes().items():
            infos = [one.memory_full_info() for one in processes]
            found[role] = (sum(getattr(one, "pss", one.rss) for one in infos), sum(one.rss for one in infos))
        return found

    def redis(self) -> redis.Redis:
        """A client of its store."""
        assert self.store is not None, f"{self.name} has no store"
        return redis.Redis.from_url(self.store)


class Launcher:
    """Starts systems in one folder.

    Args:
        folder: For logs and stores.
        stack: Stops what was started.
        pool: Pool of our worker.
        concurrency: Jobs at a time in our worker, None for its default.
    """

    def __init__(self, folder: Path, stack: ExitStack, pool: str, concurrency: int | None) -> None:
        self._folder = folder
        self._stack = stack
        self._pool = pool
        self._concurrency = concurrency

    def start(self, name: str) -> System:
        """Start a system: its store, its worker, its server."""
        folder = self._folder / f"{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        if name == FLOOR:
            return self._serve(System(name, "", None), folder, _serve_command("bench.apps.floor:server"), {})
        store = self._stack.enter_context(EmbeddedStore.open(folder / "store"))
        system = System(name, "", store.url)
        system.roots["store"] = int((folder / "store" / "store.pid").read_text())
        if name == PLAIN:
            return self._plain_celery(system, folder)
        if name in (OURS, SEALED, MEASURED, KOMBU):
            return self._ours(system, folder, "bench.apps.ours:server")
        if name == ADAPTER:
            return self._ours(system, folder, "bench.apps.fastmcp_on_celery:server")
        return self._fastmcp(system, folder)

    def _ours(self, system: System, folder: Path, server: str) -> System:
        assert system.store is not None
        settings = {"MCP_CELERY_REDIS_URL": system.store, "MCP_CELERY_SERVER": server}
        if system.name == SEALED:
            settings["MCP_CELERY_ENCRYPTION_KEYS"] = make_key()
        if system.name == MEASURED:
            settings["MCP_CELERY_TELEMETRY"] = "prometheus"
        if system.name == KOMBU:
            settings["MCP_CELERY_WORKER_TRANSPORT"] = "kombu"
        argv = [sys.executable, "-m", "celery", "-A", "mcp_celery", "worker", *POOLS[self._pool]]
        if self._concurrency is not None:
            argv += ["-c", str(self._concurrency)]
        self._work(system, folder, argv, settings)
        return self._serve(system, folder, _serve_command(server), settings)

    def _plain_celery(self, system: System, folder: Path) -> System:
        """A worker on prefork, Celery's default pool, and no server."""
        assert system.store is not None
        argv = [sys.executable, "-m", "celery", "-A", "bench.apps.plain_celery", "worker"]
        return self._work(system, folder, argv, {"BENCH_STORE": celery_url(system.store)})

    def _work(self, system: System, folder: Path, argv: list[str], settings: Mapping[str, str]) -> System:
        log = folder / "worker.log"
        client = system.redis()
        child = self._stack.enter_context(process(argv, _environment(settings), log, lambda: _waits_for_jobs(client)))
        client.close()
        system.roots["worker"] = child.pid
        return system

    def _fastmcp(self, system: System, folder: Path) -> System:
        assert system.store is not None
        settings = {"FASTMCP_DOCKET_URL": system.store, **(_TUNING if system.name == TUNED_PEER else {})}
        if system.name != LONE_PEER:  # its server is a worker, too
            log = folder / "worker.log"
            argv = [str(peer.PYTHON), "-m", "fastmcp_tasks.worker_cli", "worker", "bench/apps/fastmcp4.py"]
            child = self._stack.enter_context(
                process(argv, _environment(settings), log, lambda: "Concurrency:" in log.read_text())
            )
            system.roots["worker"] = child.pid
        return self._serve(system, folder, [str(peer.PYTHON), "-m", "bench.apps.fastmcp4"], settings)

    def _serve(self, system: System, folder: Path, argv: list[str], settings: Mapping[str, str]) -> System:
        port = free_port()
        child = self._stack.enter_context(
            process([*argv, str(port)], _environment(settings), folder / "server.log", lambda: is_listening(port))
        )
        system.roots["server"] = child.pid
        system.url = f"http://127.0.0.1:{port}/mcp"
        return system


def _serve_command(server: str) -> list[str]:
    return [sys.executable, "-m", "mcp_celery", "serve", server, "--port"]


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {**inherited, "PYTHONUNBUFFERED": "1", **settings}


def _waits_for_jobs(store: redis.Redis) -> bool:
    """Whether a worker consumes a queue. Its log says so too, but only above Celery's default level."""
    clients: list[dict[str, str]] = cast("Any", store).client_list()
    return any(client["cmd"] == "brpop" for client in clients)
