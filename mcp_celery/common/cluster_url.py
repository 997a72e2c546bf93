"""URLs of Redis Cluster: ``redis+cluster://HOST:PORT,HOST:PORT``, the addresses of some of its nodes; and hash tags.

Such a URL becomes one ordinary Redis URL, which :mod:`mcp_celery.common.redis_url` reads, and the nodes' addresses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mcp_celery.common.url_hosts import Host, Split, have_one_in_common, read_host, shown

CLUSTER_SCHEMES: Final[Mapping[str, bool]] = {
    "redis+cluster": False,
    "valkey+cluster": False,
    "rediss+cluster": True,
    "valkeys+cluster": True,
}
"""Schemes, and whether the nodes are reached over TLS."""
CLUSTER_PORT: Final = 6379
_TAG: Final = re.compile(r"[^{]*\{[^}]+\}")


@dataclass(frozen=True, slots=True)
class ClusterNodes:
    """The nodes that a URL names. They know the others.

    Attributes:
        hosts: Names or addresses with their ports, in the order of the URL.
    """

    hosts: tuple[Host, ...]

    @property
    def addresses(self) -> str:
        """Their addresses, for people."""
        return shown(self.hosts)

    def shares_node_with(self, other: ClusterNodes) -> bool:
        """Whether both name a node of one cluster."""
        return have_one_in_common(self.hosts, other.hosts)


def has_hash_tag(prefix: str) -> bool:
    """Whether what a key begins with has a hash tag: a cluster looks only at what is within the first braces."""
    return _TAG.match(prefix) is not None


def shared_root(prefix: str) -> str:
    """What keys begin with that have one hash tag for all namespaces.

    >>> shared_root("mcp_celery")
    '{mcp_celery}'
    >>> shared_root("{reports}")
    '{reports}'

    Args:
        prefix: ``MCP_CELERY_KEY_PREFIX``.
    """
    return prefix if has_hash_tag(prefix) else f"{{{prefix}}}"


def flattened_cluster(url: str, split: Split) -> tuple[str, ClusterNodes]:
    """One Redis URL with the user and the options of a URL of a cluster, whose host is the first node; and all nodes.

    Args:
        url: The URL.
        split: Reads addresses.

    Raises:
        ValueError: It cannot be used. The text shows no part of the URL.
    """
    scheme, _, rest = url.partition("://")
    end = next((at for at, character in enumerate(rest) if character in "/?#"), len(rest))
    user, at, addresses = rest[:end].rpartition("@")
    nodes = addresses.split(",")
    hosts = tuple(read_host(node, split, whose="a node of the cluster", default_port=CLUSTER_PORT) for node in nodes)
    flat = f"{'rediss' if CLUSTER_SCHEMES[scheme.lower()] else 'redis'}://{user}{at}{nodes[0].strip()}{rest[end:]}"
    return flat, ClusterNodes(hosts)
