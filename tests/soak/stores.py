"""Where the soaked tasks are kept: one server, a master that Sentinels watch, or a cluster of three shards."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import redis
from typing_extensions import override

from mcp_celery.store.keys import RedisKeys
from tests.support.clusters import SHARDS, Cluster, nodes_of
from tests.support.nodes import EmbeddedStoreContainer, ValkeyProcess
from tests.support.sentinels import Watched
from tests.support.waiting import eventually_sync

StoreKind = Literal["single", "sentinel", "cluster"]
NAMESPACE: Final = "soak"
PREFIX: Final = "mcp_celery"
SYNCED_SECONDS: Final = 60.0
PAUSE_MS: Final = 10_000
"""How long a master takes no writes before it is killed, at most."""


class SoakStore(ABC):
    """Keeps the tasks, and the results where no other place is named.

    Attributes:
        deed: How its death is called.
        weight: How often it dies, as compared with the other deeds.
        is_tagged: Whether its keys have hash tags.
        keeps_results_of_others: Whether the app whose job is exposed keeps its results there too.
    """

    deed: ClassVar[str] = "store killed (SIGKILL)"
    weight: ClassVar[int] = 2
    is_tagged: ClassVar[bool] = False
    keeps_results_of_others: ClassVar[bool] = True

    @property
    @abstractmethod
    def url(self) -> str:
        """For ``MCP_CELERY_REDIS_URL``."""

    @abstractmethod
    def crash(self, chance: random.Random) -> None:
        """Kill what is the master as ``kill -9`` does, and have everything run again."""

    @abstractmethod
    def clients(self) -> list[Any]:
        """A client of each master; the first is that of the namespace."""

    @abstractmethod
    def stop(self) -> None:
        """End it."""

    @property
    def keys(self) -> RedisKeys:
        """The names of the keys of the soaked server."""
        return RedisKeys(PREFIX, NAMESPACE, is_tagged=self.is_tagged)


class SingleStore(SoakStore):
    """One server, which keeps its data over a restart."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedStoreContainer(folder / "records")
        self._server.start()

    @property
    @override
    def url(self) -> str:
        return self._server.url

    @override
    def crash(self, chance: random.Random) -> None:
        self._server.crash()
        self._server.start()

    @override
    def clients(self) -> list[Any]:
        return [redis.Redis.from_url(self.url, decode_responses=True)]

    @override
    def stop(self) -> None:
        self._server.stop()


class WatchedStore(SoakStore):
    """A master and its replica, which three Sentinels watch."""

    deed = "master killed (SIGKILL), and its replica promoted by the Sentinels"
    weight = 8

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._watched = Watched(folder, nodes_of(self._stack), keeps=True)

    @property
    @override
    def url(self) -> str:
        return self._watched.url

    @override
    def crash(self, chance: random.Random) -> None:
        watched = self._watched
        master = watched.master()
        replica = 1 - master
        eventually_sync(lambda: _follows(watched.admin(replica)), what="the replica follows", seconds=SYNCED_SECONDS)
        with _replicated(watched.admin(master)):
            watched.servers[master].kill()
        eventually_sync(lambda: watched.master() == replica, what="the replica is master", seconds=SYNCED_SECONDS)
        _start(watched.servers[master])
        eventually_sync(
            lambda: _follows(watched.admin(master)), what="the former master follows", seconds=SYNCED_SECONDS
        )

    @override
    def clients(self) -> list[Any]:
        return [self._watched.admin(self._watched.master())]

    @override
    def stop(self) -> None:
        self._stack.close()


class ClusteredStore(SoakStore):
    """A cluster of three shards, each with a replica."""

    deed = "master of a shard killed (SIGKILL), and its replica promoted by the cluster"
    weight = 8
    is_tagged = True
    keeps_results_of_others = False

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._cluster = Cluster(folder, nodes_of(self._stack), replicas=True, options={"appendonly": "yes"})

    @property
    @override
    def url(self) -> str:
        return self._cluster.url

    @override
    def crash(self, chance: random.Random) -> None:
        """Kill the master of the namespace, each third time on average that of another shard."""
        cluster = self._cluster
        masters = self._masters()
        victim = masters[0] if chance.random() < 2 / 3 else chance.choice(masters[1:])
        for index in range(len(cluster.nodes)):
            if index not in masters:
                client = cluster.admin(index)
                eventually_sync(lambda one=client: _follows(one), what="the replicas follow", seconds=SYNCED_SECONDS)
        with _replicated(cluster.admin(victim)):
            cluster.nodes[victim].kill()
        eventually_sync(lambda: self._is_replaced(victim), what="a replica is master", seconds=SYNCED_SECONDS)
        _start(cluster.nodes[victim])
        eventually_sync(
            lambda: _follows(cluster.admin(victim)), what="the former master follows", seconds=SYNCED_SECONDS
        )

    def _masters(self, *, without: int | None = None) -> list[int]:
        """The masters that all living nodes know, that of the namespace first."""
        views = {tuple(self._masters_of(index)) for index in range(len(self._cluster.nodes)) if index != without}
        return list(next(iter(views))) if len(views) == 1 else []

    def _masters_of(self, index: int) -> list[int]:
        from_port = self._cluster.ports.index
        with self._cluster.admin(index) as node:
            shards = node.execute_command("CLUSTER", "SLOTS")
        own = self._cluster.slot_of(self.keys.root)
        ordered = sorted(shards, key=lambda shard: not shard[0] <= own <= shard[1])
        return [from_port(shard[2][1]) for shard in ordered]

    def _is_replaced(self, victim: int) -> bool:
        masters = self._masters(without=victim)
        return len(masters) == SHARDS and victim not in masters

    @override
    def clients(self) -> list[Any]:
        return [self._cluster.admin(index) for index in self._masters()]

    @override
    def stop(self) -> None:
        self._stack.close()


STORES: Final[dict[StoreKind, Callable[[Path], SoakStore]]] = {
    "single": SingleStore,
    "sentinel": WatchedStore,
    "cluster": ClusteredStore,
}


def _start(node: ValkeyProcess) -> None:
    node.start()
    node.ready()


def _follows(client: Any) -> bool:
    """Whether a server is a replica that has all of its master."""
    try:
        with client:
            found = client.info("replication")
    except redis.ConnectionError:
        return False  # a server that becomes a replica ends its connections
    return found["role"] == "slave" and found.get("master_link_status") == "up"


@contextmanager
def _replicated(client: Any) -> Generator[None]:
    """Have a master take no writes until its replica has everything that it has acknowledged. What a replica lacks when
    its master dies is lost, and no client can know (docs/redis.md).
    """
    with client:
        client.client_pause(PAUSE_MS, all=False)
        deadline = time.monotonic() + SYNCED_SECONDS

        def has_all() -> bool:
            found: dict[str, Any] = client.info("replication")
            number = int(found["connected_slaves"])
            offsets: list[int] = [found[f"slave{index}"]["offset"] for index in range(number)]
            return bool(offsets) and min(offsets) >= found["master_repl_offset"]

        eventually_sync(has_all, what="the replica has everything", seconds=deadline - time.monotonic())
        yield
