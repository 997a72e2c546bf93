"""Where the master is that Redis Sentinels watch, and what they say of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import redis
from typing_extensions import override

from mcp_celery.common.redis_translation import sentinel_url
from mcp_celery.common.redis_url import RedisUrl, parse
from mcp_celery.common.sentinel_url import Sentinels
from mcp_celery.common.within import within
from mcp_celery.store.masters import Address, Failures, NoMasterError, Search, all_refuse, client_of, reason, texts_of


class SentinelRefusalError(redis.AuthenticationError):
    """Each Sentinel that answers refuses user or password."""


class SentinelSearch(Search):
    """The Sentinels of one client of the store, and what they say.

    Args:
        url: The URL of the store.
        sentinels: The URL's.
        timeout_seconds: How long the store may take to answer. Sentinels have no longer.
    """

    look_seconds = 1.0
    """A former master that lives keeps its clients for some ten seconds after a failover, and loses what they write."""

    def __init__(self, url: RedisUrl, sentinels: Sentinels, *, timeout_seconds: float) -> None:
        urls = {address: sentinel_url(url, sentinels, *address) for address in sentinels.hosts}
        super().__init__(urls, timeout_seconds=timeout_seconds)
        self._master = sentinels.master
        self.command = ("SENTINEL GET-MASTER-ADDR-BY-NAME", sentinels.master)

    @override
    def read(self, server: Address, reply: Any) -> Address | None:
        if not reply:
            return None
        host, port = cast("tuple[bytes | str, bytes | str | int]", reply)
        return host.decode() if isinstance(host, bytes) else host, int(port)

    @override
    def failed(self, failures: Failures) -> redis.ConnectionError:
        text = f"no Sentinel names the master {self._master}: {texts_of(failures, 'knows no such master')}"
        return SentinelRefusalError(text) if all_refuse(failures) else NoMasterError(text)


@dataclass(frozen=True, slots=True)
class SentinelView:
    """What one Sentinel says.

    Attributes:
        sentinel: Its address.
        problem: Why it says nothing; None where it answers.
        master: Where it says that the master is.
        replicas: How many replicas it knows that answer it.
        sentinels: How many Sentinels it knows, with itself.
        no_failover: Why Sentinels could not agree on a failover now; None where they can.
    """

    sentinel: str
    problem: str | None = None
    master: str = ""
    replicas: int = 0
    sentinels: int = 0
    no_failover: str | None = None


async def views_of(url: str, *, timeout_seconds: float) -> list[SentinelView]:
    """Ask each Sentinel of a URL, at the same time; empty where the URL names none.

    Args:
        url: ``MCP_CELERY_REDIS_URL``.
        timeout_seconds: How long each may take.
    """
    parsed = parse(url)
    sentinels = parsed.sentinels
    if sentinels is None:
        return []
    return await asyncio.gather(
        *(
            _view(f"{host}:{port}", sentinel_url(parsed, sentinels, host, port), sentinels.master, timeout_seconds)
            for host, port in sentinels.hosts
        )
    )


async def _view(address: str, url: str, master: str, timeout_seconds: float) -> SentinelView:
    try:
        async with client_of(url) as client, within(timeout_seconds):
            known: Any = await client.execute_command("SENTINEL MASTER", master)
            replicas: Any = await client.execute_command("SENTINEL SLAVES", master)
            try:
                await client.execute_command("SENTINEL CKQUORUM", master)
                no_failover = None
            except redis.ResponseError as error:
                no_failover = str(error)
    except (redis.RedisError, OSError) as error:
        return SentinelView(address, reason(error).strip("()"))
    return SentinelView(
        address,
        master=f"{known['ip']}:{known['port']}",
        replicas=sum(not (one["is_sdown"] or one["is_odown"]) for one in replicas),
        sentinels=int(known["num-other-sentinels"]) + 1,
        no_failover=no_failover,
    )
