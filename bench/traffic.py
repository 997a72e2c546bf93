"""What a store is asked, command by command: sent by a client, or called by a script inside it."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import redis

from mcp_celery.store.scripts import SCRIPTS
from mcp_celery.worker.celery.batched_qos import script

_OWN: Final = frozenset({"info", "echo", "monitor"})
_MARK: Final = "bench-end"
_SCRIPT_NAMES: Final = {
    hashlib.sha1(text.encode()).hexdigest(): name
    for name, text in {**SCRIPTS, **{name: script(name) for name in ("take", "acknowledge")}}.items()
}

# Which part of a command tells what it is for, and whose it is. The first line that fits counts.
_PURPOSES: Final[tuple[tuple[tuple[str, ...], str, str], ...]] = (
    (("brpop",), "", "kombu: take a job from the queue"),
    (("lpush", "rpush"), "", "kombu: put the job into the queue"),
    (("zadd", "hset", "multi", "exec"), "unacked", "kombu: note the job as delivered, not acknowledged"),
    (("zrem", "hdel"), "unacked", "kombu: acknowledge the job"),
    (("hget", "zrevrangebyscore", "setnx", "set", "get", "del"), "unacked", "kombu: look for lost jobs"),
    (("evalsha", "script"), "unacked", "kombu: look for lost jobs"),
    (("smembers", "sadd"), "_kombu.binding", "kombu: look up the queues of an exchange"),
    (("llen",), "", "kombu: does the queue exist"),
    (("publish",), "celeryev", "Celery: event for Flower"),
    (("publish",), "celery-task-meta", "Celery: tell waiting AsyncResults"),
    (("get", "mget"), "celery-task-meta", "read the stored result"),
    (("hgetall",), ":task:", "mcp_celery: read the record"),
    (("set", "setex", "expire"), "celery-task-meta", "Celery: store the result"),
    (("subscribe", "unsubscribe", "psubscribe"), "", "subscriptions"),
    (("ping",), "", "connection checks"),
    (("client", "hello", "select", "auth"), "", "new connections"),
    (("hset", "set", "pexpireat", "hsetex"), "mcp_celery:", "mcp_celery: create the record"),
)


@dataclass(slots=True)
class Traffic:
    """What was asked.

    Attributes:
        sent: By clients: how many commands, by purpose and name.
        in_scripts: Called by scripts, which costs no round trip.
        counted: All of it together, as ``INFO commandstats`` has it.
    """

    sent: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    in_scripts: Counter[str] = field(default_factory=Counter[str])
    counted: int = 0


@contextmanager
def watched(client: redis.Redis) -> Generator[Traffic]:
    """Count everything that a store is asked while the context lasts.

    Args:
        client: Of that store; its own commands are not counted.
    """
    traffic = Traffic()
    seen: list[dict[str, Any]] = []
    watching = threading.Event()

    def read() -> None:
        with client.monitor() as monitor:
            watching.set()
            for one in cast("Iterator[dict[str, Any]]", monitor.listen()):
                if _MARK in str(one["command"]):
                    return
                seen.append(one)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    watching.wait()
    before = _commandstats(client)
    yield traffic
    after = _commandstats(client)
    client.echo(_MARK)
    thread.join()
    traffic.counted = sum((after - before).values())
    _sort(seen, traffic)


def _commandstats(client: redis.Redis) -> Counter[str]:
    stats = cast("dict[str, dict[str, int]]", client.info("commandstats"))
    found = {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()}
    return Counter({name: calls for name, calls in found.items() if name not in _OWN})


def _sort(seen: list[dict[str, Any]], traffic: Traffic) -> None:
    transaction: str | None = None  # the purpose of what a MULTI holds, once it is known
    opened = False
    for one in seen:
        words = str(one["command"]).split(" ")
        name = words[0].lower()
        if name in _OWN:
            continue
        if one["client_type"] == "lua":
            traffic.in_scripts[name] += 1
            continue
        if name == "multi":
            opened, transaction = True, None
            continue
        if name == "exec":
            for part in ("MULTI", "EXEC"):
                traffic.sent[transaction or "transactions", part] += 1
            opened = False
            continue
        purpose = _purpose(name, words[1:])
        if opened and transaction is None:
            transaction = purpose
        traffic.sent[purpose, name.upper()] += 1


def _purpose(name: str, arguments: list[str]) -> str:
    if name in ("evalsha", "eval", "fcall") and arguments and arguments[0] in _SCRIPT_NAMES:
        return f"mcp_celery: {_SCRIPT_NAMES[arguments[0]]}.lua"
    key = arguments[0] if arguments else ""
    for names, part, purpose in _PURPOSES:
        if name in names and part in key:
            return purpose
    return "other"
