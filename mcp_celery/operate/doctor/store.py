"""Checks of the Redis that keeps the tasks."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import redis

from mcp_celery.errors import StoredDataError, StoreUnavailableError
from mcp_celery.operate.doctor.findings import Findings, skew_of
from mcp_celery.operate.site import Open
from mcp_celery.store.failures import described
from mcp_celery.store.sealed import TaskSeals

URL: Final = "MCP_CELERY_REDIS_URL"
OLDEST: Final = (6, 2)
"""The first version of Redis that has the commands of our scripts (``SET … PXAT``, ``ZRANGE … BYLEX``)."""
SAMPLE: Final = 50
"""How many records are looked at for their signatures."""
_PLACE: Final = re.compile(r"(command )?script: [0-9a-f]{40}.*")
_RIGHTS: Final = """
redis.call('SET', KEYS[1], '', 'PX', 60000)
local reply = redis.pcall(ARGV[1], KEYS[2], '')
if type(reply) == 'table' and reply.err then
  -- Before version 7 there is no sharded pub/sub. Scripts and subscribers use the other commands then.
  redis.call(string.find(reply.err, 'nknown Redis command', 1, true) and 'PUBLISH' or ARGV[1], KEYS[2], '')
end
redis.call('DEL', KEYS[1])
return redis.call('TIME')
"""


async def check_store(opened: Open, *, result_key: str | None) -> list[Any]:
    """Check the store of one server.

    Args:
        opened: The server's tasks.
        result_key: A name of a result in the same Redis, None where results are kept elsewhere.
    """
    findings = Findings("store")
    client: Any = opened.store.client.redis
    try:
        await opened.inspection.now_ms()
    except StoreUnavailableError as error:
        cause = error.__cause__
        reason = "it does not answer in time" if cause is None else described(cause)
        findings.error(f"Redis cannot be used: {reason}", URL)
        return findings.found
    info = await _info(opened, client, findings)
    _check_version(findings, info)
    _check_replication(findings, info, has_sentinels=opened.store.client.has_sentinels)
    _check_memory(findings, info)
    _check_persistence(findings, info)
    await _check_clock(findings, opened)
    await _check_rights(findings, opened, client, result_key)
    await _check_signatures(findings, opened)
    return findings.found


async def _info(opened: Open, client: Any, findings: Findings) -> Mapping[str, Any]:
    try:
        return await opened.store.guarded(client.info)
    except StoreUnavailableError as error:
        findings.warning(
            f"the Redis user may not call INFO, so memory and persistence were not checked: {_cause(error)}",
            "the user's rights: +info (docs/redis.md)",
        )
        return {}


def _check_version(findings: Findings, info: Mapping[str, Any]) -> None:
    if "redis_version" not in info:
        return
    name, text = str(info.get("server_name", "redis")), str(info["redis_version"])
    shown = str(info.get("valkey_version", text))
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    if numbers < OLDEST:
        findings.error(f"{name} {shown} is too old: 6.2 is the first version with all commands", URL)
    elif info.get("role") not in (None, "master"):
        findings.error(f"{name} {shown} is a replica, which takes no writes", URL)
    else:
        findings.ok(f"{name} {shown} answers")


def _check_replication(findings: Findings, info: Mapping[str, Any], *, has_sentinels: bool) -> None:
    if has_sentinels and int(info.get("connected_slaves", 0)) > 1 and "min_slaves_good_slaves" not in info:
        findings.warning(
            "min-replicas-to-write is off: a master that is cut off from its replicas takes writes that will be lost",
            "min-replicas-to-write 1 of each server (docs/redis.md)",
        )


def _check_memory(findings: Findings, info: Mapping[str, Any]) -> None:
    if "maxmemory" not in info:
        return
    most, policy = int(info["maxmemory"]), str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        evicts = f"maxmemory-policy is {policy}: Redis deletes tasks when its memory is full"
        if most:
            findings.error(evicts, "maxmemory-policy noeviction")
        else:
            findings.warning(f"{evicts}; maxmemory is not set yet", "maxmemory-policy noeviction")
    elif most and int(info["used_memory"]) > 0.9 * most:
        findings.warning(f"{int(info['used_memory']) * 100 // most} % of maxmemory is in use", "maxmemory")
    else:
        findings.ok("maxmemory-policy is noeviction" + ("" if most else ", and there is no maxmemory"))


def _check_persistence(findings: Findings, info: Mapping[str, Any]) -> None:
    if "aof_enabled" not in info:
        return
    if info.get("aof_enabled") and info.get("aof_last_write_status") != "ok":
        findings.error("Redis could not write its append-only file", "the disk of Redis")
    elif info.get("rdb_last_bgsave_status") != "ok":
        findings.error("Redis could not write its last snapshot to the disk", "the disk of Redis")
    elif not info.get("aof_enabled"):
        findings.warning(
            "appendonly is off: if Redis ends, tasks since its last snapshot are lost, or all of them",
            "appendonly yes (config/redis.conf)",
        )
    else:
        findings.ok("tasks are written to disk (appendonly)")


async def _check_clock(findings: Findings, opened: Open) -> None:
    before = time.time_ns() // 1_000_000
    theirs = await opened.inspection.now_ms()
    after = time.time_ns() // 1_000_000
    skew_of(findings, "Redis", outside(theirs, before, after))


def outside(theirs: int, before: int, after: int) -> int:
    """By how many ms a time lies outside the interval in which it was read."""
    return theirs - max(min(theirs, after), before)


async def _check_rights(findings: Findings, opened: Open, client: Any, result_key: str | None) -> None:
    """Try what servers and workers do: scripts on our keys, channels, and the keys of results."""
    keys = opened.store.keys
    rules = "the rights of the Redis user (docs/redis.md)"

    def script(key: str, channel: str, publish: str = "PUBLISH") -> Callable[[], Awaitable[Any]]:
        return lambda: client.eval(_RIGHTS, 2, key, channel, publish)

    async def subscribe() -> None:
        try:
            async with client.pubsub() as pubsub:
                await (pubsub.ssubscribe if keys.is_sharded else pubsub.subscribe)(keys.idle_channel)
                await pubsub.get_message(timeout=1)
        except redis.ResponseError as error:
            if "unknown command" not in str(error):
                raise

    attempts = {
        f"use the keys and channels {keys.all_channels}*": script(
            keys.doctor, keys.idle_channel, "SPUBLISH" if keys.is_sharded else "PUBLISH"
        ),
        f"subscribe to the channels {keys.all_channels}*": subscribe,
    }
    if result_key is not None:
        attempts["store results"] = script(result_key, result_key)
    refused = False
    for what, attempt in attempts.items():
        try:
            await opened.store.guarded(attempt)
        except (StoreUnavailableError, StoredDataError) as error:
            refused = True
            findings.error(f"the Redis user may not {what}: {_cause(error)}", rules)
    if not refused:
        findings.ok("the Redis user has the rights that servers and workers need")


async def _check_signatures(findings: Findings, opened: Open) -> None:
    """See whether the newest records are signed with our keys: servers with other keys signed those that are not."""
    seals: TaskSeals = opened.store.seals
    number, refused = await opened.inspection.unsigned(SAMPLE)
    setting = "MCP_CELERY_ENCRYPTION_KEYS"
    if refused and seals.sealing.is_on:
        findings.error(
            f"{refused} of the last {number} tasks are not signed with the keys of this process: the server that "
            "created them had other keys, or none",
            setting,
        )
    elif refused:
        findings.error(f"{refused} of the last {number} tasks are sealed, and this process has no keys", setting)


def _cause(error: BaseException) -> str:
    """Why a command failed, without the place in the script that Redis names."""
    cause = error.__cause__ or error
    if not isinstance(cause, redis.RedisError):
        return str(cause)
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {_PLACE.sub('', text)}"[:200]
