"""Which node of a Redis Cluster keeps a namespace, and what the nodes say of the cluster.

Every key of a namespace has one hash tag, so that all of them are on one shard. A client of a namespace therefore needs
only the master of that shard. It has connections to no other node, and each of its commands goes there:
what :mod:`mcp_celery.store.connection` promises of lost connections and answers holds for a cluster too. redis-py's
client of a cluster sends a command again whose answer was lost, whatever the command does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import redis
from redis.crc import key_slot
from redis.exceptions import ClusterDownError, MovedError
from typing_extensions import override

from mcp_celery.common.redis_translation import node_url
from mcp_celery.common.redis_url import RedisUrl
from mcp_celery.store.masters import (
    Address,
    Failures,
    NoMasterError,
    Search,
    all_refuse,
    client_of,
    distinct,
    reason,
    texts_of,
)

SLOTS: Final = 16_384
_COMMAND: Final = ("CLUSTER", "SLOTS")
_UNKNOWN: Final = ("", "?")
"""What stands for the address of a node that does not know its own."""


class ClusterRefusalError(redis.AuthenticationError):
    """Each node that answers refuses user or password."""


def slot_of(key: str) -> int:
    """The slot of a key."""
    return key_slot(key.encode())


@dataclass(frozen=True, slots=True)
class Shard:
    """One range of slots and who has it.

    Attributes:
        first: The first slot.
        last: The last one.
        master: The address of its master.
        replicas: Those of its replicas.
    """

    first: int
    last: int
    master: Address
    replicas: tuple[Address, ...]


def shards_in(asked: Address, reply: Any) -> list[Shard]:
    """What a node says to ``CLUSTER SLOTS``.

    Args:
        asked: The node. A node that does not know its own address is taken to have the host of this one.
        reply: Its reply.
    """

    def address(node: Any) -> Address:
        host: str = node[0].decode() if isinstance(node[0], bytes) else node[0] or ""
        return asked[0] if host in _UNKNOWN else host, int(node[1])

    return [
        Shard(int(first), int(last), address(master), tuple(address(one) for one in replicas))
        for first, last, master, *replicas in cast("list[list[Any]]", reply)
    ]


class SlotSearch(Search):
    """The nodes of a Redis Cluster as one client of the store knows them.

    Args:
        url: The URL of the store.
        key: Any key of those that the client uses, or what they begin with; empty: any master will do.
        timeout_seconds: How long the store may take to answer. Nodes have no longer to say who is the master.
        credentials: Gives user and password for each connection. None: those of the URL.
    """

    look_seconds = 5.0
    """A former master sends its clients away by itself as soon as it hears of another, and takes no writes when it is
    cut off from the others for longer than ``cluster-node-timeout``.
    """
    command = _COMMAND

    def __init__(
        self,
        url: RedisUrl,
        *,
        key: str,
        timeout_seconds: float,
        credentials: redis.CredentialProvider | None = None,
    ) -> None:
        self._url = url
        self._seeds = () if url.cluster is None else url.cluster.hosts
        super().__init__(dict.fromkeys(self._seeds, ""), timeout_seconds=timeout_seconds, credentials=credentials)
        self._slot = slot_of(key) if key else None

    @override
    def url(self, server: Address) -> str:
        return node_url(self._url, *server, with_user=self.credentials is None)

    @override
    def read(self, server: Address, reply: Any) -> Address | None:
        shards = shards_in(server, reply)
        known = [shard.master for shard in shards], [one for shard in shards for one in shard.replicas]
        # What the nodes of the URL were called may lead to others some day, so these stay in.
        self._order = distinct([server, *known[0], *known[1], *self._seeds])
        if self._slot is None:
            return server if server in known[0] else next(iter(known[0]), None)
        return next((one.master for one in shards if one.first <= self._slot <= one.last), None)

    @override
    def is_elsewhere(self, error: redis.ResponseError, address: Address) -> bool:
        if isinstance(error, MovedError):
            # Its text is the slot and the address, without the host where that is the host of this node.
            host, _, port = str(error).rpartition(" ")[2].rpartition(":")
            told = (host or address[0], int(port))
            self._order = distinct([told, *self._order])  # it knows which slots it has
            return True
        if isinstance(error, ClusterDownError):
            self.distrust(address)  # it may be cut off from the others, which have made another node the master
            return True
        return False

    @override
    def failed(self, failures: Failures) -> redis.ConnectionError:
        what = "a master" if self._slot is None else f"the master of slot {self._slot}"
        text = f"no node of the cluster names {what}: {texts_of(failures, 'knows none')}"
        return ClusterRefusalError(text) if all_refuse(failures) else NoMasterError(text)


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What the nodes of a cluster say.

    Attributes:
        problems: By the address of each node of the URL that cannot be asked: why.
        answered: How many nodes of the URL answer.
        info: What the first of them says to ``CLUSTER INFO``, by name.
        shards: The ranges of slots that it knows.
    """

    problems: Mapping[str, str]
    answered: int
    info: Mapping[str, str] = field(default_factory=dict[str, str])
    shards: tuple[Shard, ...] = ()

    @property
    def masters(self) -> list[Address]:
        """The addresses of all masters."""
        return distinct(shard.master for shard in self.shards)

    @property
    def covered(self) -> int:
        """How many slots have a master."""
        return sum(shard.last - shard.first + 1 for shard in self.shards)

    def shard_of(self, key: str) -> Shard | None:
        """Who has a key; None where no node has it."""
        slot = slot_of(key)
        return next((shard for shard in self.shards if shard.first <= slot <= shard.last), None)


async def view_of(
    url: RedisUrl, *, timeout_seconds: float, credentials: redis.CredentialProvider | None = None
) -> ClusterView:
    """Ask each node that the URL of a cluster names, at the same time.

    Args:
        url: The URL.
        timeout_seconds: How long each may take.
        credentials: Gives user and password. None: those of the URL.
    """
    nodes = () if url.cluster is None else url.cluster.hosts

    async def ask(node: Address) -> tuple[Mapping[str, str], tuple[Shard, ...]] | str:
        try:
            async with node_client(url, node, credentials, timeout_seconds=timeout_seconds) as client:
                info = await client.execute_command("CLUSTER", "INFO")
                reply = await client.execute_command(*_COMMAND)
        except (redis.RedisError, OSError) as error:
            return reason(error).strip("()")
        lines = (line.partition(":") for line in info.decode().splitlines())
        return {name: value for name, _, value in lines}, tuple(shards_in(node, reply))

    answers = await asyncio.gather(*(ask(node) for node in nodes))
    problems = {f"{host}:{port}": one for (host, port), one in zip(nodes, answers, strict=True) if isinstance(one, str)}
    known = [one for one in answers if not isinstance(one, str)]
    if not known:
        return ClusterView(problems, 0)
    info, shards = known[0]
    return ClusterView(problems, len(known), info, shards)


@asynccontextmanager
async def node_client(
    url: RedisUrl, node: Address, credentials: redis.CredentialProvider | None, *, timeout_seconds: float
) -> AsyncGenerator[Any]:
    """A client of one node, as :func:`mcp_celery.store.masters.client_of`.

    Args:
        url: The URL of the cluster.
        node: The node's address.
        credentials: Gives user and password. None: those of the URL.
        timeout_seconds: How long connecting may take, and an answer.
    """
    where = node_url(url, *node, with_user=credentials is None)
    async with client_of(where, credentials, timeout_seconds=timeout_seconds) as client:
        yield client
