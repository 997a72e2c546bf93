"""A Redis Cluster of three shards, or of one, as processes of this machine that a test kills."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import redis

from mcp_celery.store.cluster import SLOTS, slot_of
from tests.support.locks import reserve_port
from tests.support.nodes import ProcessContainer, ValkeyProcess
from tests.support.waiting import eventually_sync

SHARDS: Final = 3
NODE_TIMEOUT_MS: Final = 1_500
"""After this silence the nodes take another one for dead; as short as a busy machine allows."""


def nodes_of(stack: ExitStack) -> Callable[[ProcessContainer], None]:
    """What starts nodes that stop with a stack."""

    def start(node: ProcessContainer) -> None:
        stack.callback(node.teardown)
        node.start()
        node.ready()

    return start


class Cluster:
    """Masters, each with as many slots, and perhaps replicas. The first nodes are the masters.

    Args:
        folder: Where everything is kept.
        start: Starts a process, and stops it at the end of the test.
        shards: How many masters there are.
        replica_of: A key whose master gets a replica, the last node; None: no master has one.
        replicas: Whether each master gets a replica, in the order of the masters.
        options: Further options of each node.
        binary: The server, None for the machine's own.
        tls: Its certificates, as options of its configuration, where all nodes speak only TLS.
    """

    def __init__(
        self,
        folder: Path,
        start: Callable[[ProcessContainer], None],
        *,
        shards: int = SHARDS,
        replica_of: str | None = None,
        replicas: bool = False,
        options: Mapping[str, object] | None = None,
        binary: Path | None = None,
        tls: Mapping[str, object] | None = None,
    ) -> None:
        number = shards + (shards if replicas else replica_of is not None)
        self.ports = [reserve_port() for _ in range(number)]
        self.nodes = [
            ValkeyProcess(
                folder,
                name=f"node-{index}",
                binary=binary,
                options={
                    **({"port": port} if tls is None else {**tls, "tls-port": port, "tls-cluster": "yes"}),
                    "bind": "127.0.0.1",
                    "cluster-enabled": "yes",
                    "cluster-port": reserve_port(),
                    "cluster-config-file": f"nodes-{index}.conf",
                    "appenddirname": f"appended-{index}",
                    "dbfilename": f"dump-{index}.rdb",
                    "cluster-node-timeout": NODE_TIMEOUT_MS,
                    "cluster-require-full-coverage": "no",
                    "repl-diskless-sync-delay": 0,
                    **(options or {}),
                },
            )
            for index, port in enumerate(self.ports)
        ]
        for node in self.nodes:
            start(node)
        bounds = [SLOTS * index // shards for index in range(shards + 1)]
        for index in range(shards):
            with self.admin(index) as node:
                node.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[index], bounds[index + 1] - 1)
        with self.admin(0) as first:
            for index in range(1, number):
                with self.admin(index) as other:
                    bus = other.config_get("cluster-port")["cluster-port"]
                first.execute_command("CLUSTER", "MEET", "127.0.0.1", self.ports[index], bus)
        eventually_sync(self._is_formed, what="the nodes know each other and all slots")
        masters = range(shards) if replicas else [] if replica_of is None else [self.node_of(replica_of)]
        self._replicate({shards + number: master for number, master in enumerate(masters)})

    @property
    def addresses(self) -> list[str]:
        """The addresses of the nodes."""
        return [f"127.0.0.1:{port}" for port in self.ports]

    @property
    def url(self) -> str:
        """All nodes, without any secret."""
        return f"redis+cluster://{','.join(self.addresses)}"

    def admin(self, index: int) -> Any:
        """A client of a node, over its Unix socket."""
        return redis.Redis.from_url(self.nodes[index].url, decode_responses=True)

    def node_of(self, key: str) -> int:
        """Which node has a key, as the last node says."""
        with self.admin(len(self.nodes) - 1) as node:
            shards = node.execute_command("CLUSTER", "SLOTS")
        slot = slot_of(key)
        (port,) = [master[1] for first, last, master, *_ in shards if first <= slot <= last]
        return self.ports.index(port)

    @staticmethod
    def slot_of(key: str) -> int:
        """The slot of a key."""
        return slot_of(key)

    def move(self, key: str, to: int) -> None:
        """Give the slot of a key to another node, with its keys, and tell both."""
        with self.moving(key, to):
            pass

    @contextmanager
    def moving(self, key: str, to: int) -> Generator[None]:
        """Begin to give the slot of a key to another node; at the end its keys are there."""
        here, slot = self.node_of(key), slot_of(key)
        with self.admin(here) as source, self.admin(to) as target:
            target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(here))
            source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(to))
            yield
            while keys := source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                source.execute_command("MIGRATE", "127.0.0.1", self.ports[to], "", 0, 5_000, "KEYS", *keys)
            for node in (target, source):
                node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self._id(to))

    def _id(self, index: int) -> str:
        with self.admin(index) as node:
            return node.execute_command("CLUSTER", "MYID")

    def _replicate(self, masters: Mapping[int, int]) -> None:
        """Have nodes follow others."""
        for index, master in masters.items():
            with self.admin(index) as replica:
                replica.execute_command("CLUSTER", "REPLICATE", self._id(master))
        if masters:
            following = functools.partial(self._are_following, list(masters))
            eventually_sync(following, what="the replicas follow their masters, and all nodes know it")

    def _is_formed(self) -> bool:
        for index in range(len(self.nodes)):
            with self.admin(index) as node:
                info: str = node.execute_command("CLUSTER", "INFO")
            found = dict(line.split(":") for line in str(info).split())
            if found["cluster_state"] != "ok" or int(found["cluster_known_nodes"]) != len(self.nodes):
                return False
            if int(found["cluster_slots_ok"]) != SLOTS:
                return False
        return True

    def _are_following(self, replicas: Sequence[int]) -> bool:
        for index in replicas:
            with self.admin(index) as replica:
                if replica.info("replication").get("master_link_status") != "up":
                    return False
        for index in range(len(self.nodes)):
            with self.admin(index) as node:
                shards = node.execute_command("CLUSTER", "SLOTS")
            if sum(len(shard) - 3 for shard in shards) != len(replicas):
                return False
        return True
