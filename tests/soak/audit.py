"""What was promised, held against what happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, cast

import redis

from mcp_celery.redis_keys import RedisKeys
from tests.soak.load import FOREGROUND, Call
from tests.soak.server import REFUSED

ONCE: Final = ("once", "once_sync", FOREGROUND, "refuse")
THEIRS: Final = ("unacked", "unacked_index", "unacked_mutex", "_kombu.binding.")
"""What kombu's keys begin with, which have no lifetime."""


def findings(calls: Sequence[Call], notes: Path, store_url: str, keys: RedisKeys) -> list[str]:
    """Every broken promise, as a line."""
    begun = Counter[int]()
    ended = set[int]()
    for line in notes.read_text().splitlines():
        what, number = line.split()
        if what == "ended":
            ended.add(int(number))
        else:
            begun[int(number)] += 1
    return [*_of_calls(calls, begun, ended), *_of_store(store_url, keys)]


def _of_calls(calls: Sequence[Call], begun: Counter[int], ended: set[int]) -> Iterator[str]:  # noqa: C901 - a list
    for call in calls:
        name = f"{call.tool} {call.number}"
        if call.refused is not None and begun[call.number] and call.tool != FOREGROUND:
            yield f"{name} was refused with {call.refused} and ran"
        if call.tool in ONCE and begun[call.number] > 1:
            yield f"{name} ran {begun[call.number]} times"
        if call.tool == "again" and begun[call.number] > 2:
            yield f"{name} ran {begun[call.number]} times"
        if call.tool == FOREGROUND and call.end is not None and not _is_told(call, ended):
            yield f"{name} was answered with {call.end}"
        if call.task_id is None:
            continue
        if call.lost:
            yield f"{name}: its task is not found"
        elif call.end is None:
            yield f"{name}: its task is still open"
        elif call.end["status"] == "completed":
            if call.end["result"].get("structuredContent") != {"result": call.number} and call.tool != "flaky":
                yield f"{name} has the result {call.end['result']}"
            if call.tool in ("once", "once_sync", "again") and call.number not in ended:
                yield f"{name} completed and never ended"
        elif call.end["status"] == "cancelled":
            yield f"{name} is cancelled, which nobody asked for"


def _is_told(call: Call, ended: set[int]) -> bool:
    """Whether a call in the foreground was answered with its result, or with an error."""
    result = call.end or {}
    if result.get("isError"):
        return True
    return result.get("structuredContent") == {"result": call.number} and call.number in ended


def _of_store(url: str, keys: RedisKeys) -> Iterator[str]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        for key in cast("Iterator[str]", client.scan_iter(count=1000)):
            if client.ttl(key) == -1 and not key.startswith(THEIRS):
                yield f"the key {key} has no lifetime"
        if due := client.zcard(keys.due):
            yield f"{due} jobs are still due"
        for key in cast("Iterator[str]", client.scan_iter(match=keys.claims("*"), count=1000)):
            yield f"{client.scard(key)} claims are left in {key}"


def outcomes(calls: Sequence[Call]) -> Counter[str]:
    """How the calls ended, in words."""
    found = Counter[str]()
    for call in calls:
        if call.refused is not None:
            found[f"{'failed' if call.tool == FOREGROUND else 'refused'}, {call.refused}"] += 1
        elif call.tool == FOREGROUND and call.end is not None:
            found["answered in the foreground" + (" with an error" if call.end.get("isError") else "")] += 1
        elif call.task_id is None:
            found["unanswered: the server died"] += 1
        elif call.end is not None:
            error = call.end.get("error", {})
            reason = "as the tool said" if error.get("code") == REFUSED else error.get("message", "")
            found[": ".join(part for part in (call.end["status"], reason) if part)] += 1
        else:
            found["lost" if call.lost else "open"] += 1
    return found
