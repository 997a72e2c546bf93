"""The names of the measured systems, and what a running one is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import psutil
import redis

FLOOR: Final = "floor"
OURS: Final = "mcp_celery"
SEALED: Final = "mcp_celery, encryption keys"
MEASURED: Final = "mcp_celery, metrics"
KOMBU: Final = "mcp_celery, kombu's transport"
RABBITMQ: Final = "mcp_celery, RabbitMQ"
PREFORK: Final = "mcp_celery, prefork"
FAR: Final = "mcp_celery, store 1 ms away"
WIDE: Final = "mcp_celery, 1,000 slots"
LISTENED: Final = "mcp_celery, streams"
PLAIN: Final = "plain Celery"
PEER: Final = "FastMCP 4"
TUNED_PEER: Final = "FastMCP 4, tuned"
LONE_PEER: Final = "FastMCP 4, one worker"
FAR_PEER: Final = "FastMCP 4, store 1 ms away"
ADAPTER: Final = "FastMCP 4 on mcp_celery"


@dataclass(slots=True)
class System:
    """A running system.

    Attributes:
        name: Its column.
        url: The server's endpoint.
        store: URL of its store, None for the floor.
        reached: URL by which its processes reach the store, where that is another.
        queue: Where its jobs wait for a worker.
        roots: Its processes by role; their children belong to them.
    """

    name: str
    url: str
    store: str | None
    reached: str | None = None
    queue: str = ""
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

    def own_bytes(self) -> dict[str, list[int]]:
        """Memory of each process by role that it shares with no other one (unique set size)."""
        return {
            role: [getattr(info, "uss", info.rss) for info in (one.memory_full_info() for one in processes)]
            for role, processes in self.processes().items()
        }

    def redis(self) -> redis.Redis:
        """A client of its store."""
        assert self.store is not None, f"{self.name} has no store"
        return redis.Redis.from_url(self.store)

    def used_memory(self) -> int:
        """Bytes that its store's data and buffers take, of ``INFO memory``."""
        with self.redis() as client:
            return int(client.info("memory")["used_memory"])
