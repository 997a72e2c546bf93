"""How the server is found that a URL is about: Sentinels name it, or nodes of a Redis Cluster, or the URL itself."""

from __future__ import annotations

import redis

from mcp_celery.common.redis_url import parse
from mcp_celery.store.cluster import SlotSearch
from mcp_celery.store.masters import BlockingMasterFinder, MasterFinder, Search
from mcp_celery.store.sentinel import SentinelSearch


def finder_of(
    url: str, *, key: str, timeout_seconds: float, credentials: redis.CredentialProvider | None
) -> MasterFinder | None:
    """What finds the master; None where the URL names the server itself.

    Args:
        url: The URL.
        key: Any key of those that the client uses, or what they begin with; empty: any master of a cluster will do.
        timeout_seconds: How long the store may take to answer.
        credentials: Gives user and password of the servers. None: those of the URL.
    """
    search = _search(url, key, timeout_seconds, credentials)
    return None if search is None else MasterFinder(search)


def blocking_finder_of(
    url: str, *, key: str, timeout_seconds: float, credentials: redis.CredentialProvider | None
) -> BlockingMasterFinder | None:
    """As :func:`finder_of`, for threads."""
    search = _search(url, key, timeout_seconds, credentials)
    return None if search is None else BlockingMasterFinder(search)


def _search(url: str, key: str, timeout_seconds: float, credentials: redis.CredentialProvider | None) -> Search | None:
    parsed = parse(url)
    if parsed.sentinels is not None:
        return SentinelSearch(parsed, parsed.sentinels, timeout_seconds=timeout_seconds)
    if parsed.cluster is not None:
        return SlotSearch(parsed, key=key, timeout_seconds=timeout_seconds, credentials=credentials)
    return None
