"""A hundred thousand finished tasks that expire in the same moment: how long does a get take meanwhile?"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

import redis

from bench.client import Client
from bench.measures.latency import get_call
from bench.run import Findings, Row, Run
from bench.stats import percentile
from bench.systems import OURS

LEAD_SECONDS: Final = 15.0
"""From when the copies begin to be made until they expire."""
_LONGEST_SECONDS: Final = 120.0
_TOGETHER: Final = 1_000
_LOOK_SECONDS: Final = 0.5


@dataclass(slots=True)
class _Stored:
    """All that a store has of one task: its keys, and its members of indices."""

    task_id: str
    keys: dict[str, bytes] = field(default_factory=dict[str, bytes])
    """Their values, as DUMP has them."""
    scored: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Sorted sets, all of which have tasks by when they expire, and the task's member of each."""
    counted: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    """Hashes of all tasks, the task's field of each, and its value."""


async def expiry(run: Run) -> Findings:
    """Get p50 while copies of a finished task expire, against the p50 before."""
    count = run.options.size(100_000, 2_000)
    async with run.own(OURS) as (system,), Client(system.url) as client:
        copied, _ = await client.submit("noop")
        await client.finish(copied, 0.01)
        asked, _ = await client.submit("noop")
        await client.finish(asked, 0.01)
        with system.redis() as store:
            before = [await get_call(client, asked) for _ in range(run.options.size(1_000, 100))]
            left = _size(store)
            at = time.time() + LEAD_SECONDS
            await asyncio.to_thread(_copy, store, _find(store, copied), count, round(at * 1000))
            run.report(f"{count} tasks are stored")
            await asyncio.sleep(at - time.time())
            gone = asyncio.create_task(_until_gone(store, left))
            during: dict[int, list[float]] = defaultdict(list)
            until = at + run.options.size(20, 3)
            while not gone.done() or time.time() < until:
                during[int(time.time() - at)].append(await get_call(client, asked))
            seconds = await gone
    alone = percentile(before, 50)
    slowest = max(percentile(of_second, 50) for of_second in during.values())
    taken = [one for of_second in during.values() for one in of_second]
    return Findings(
        [
            Row(
                f"get while {count} tasks expire, p50 of the slowest second",
                "ms",
                {OURS: slowest * 1000},
                {OURS: slowest / alone},
            )
        ],
        [
            (
                f"{count} copies of a finished task expired in one moment; Redis had deleted their keys {seconds:.1f} "
                f"s later. {len(taken)} gets in {len(during)} s, one after the other: p50 "
                f"{percentile(taken, 50) * 1000:.2f} ms, p95 {percentile(taken, 95) * 1000:.2f} ms; before: "
                f"{alone * 1000:.2f} and {percentile(before, 95) * 1000:.2f} ms. The ratio is to the p50 before."
            )
        ],
    )


def _find(store: redis.Redis, task_id: str) -> _Stored:
    found = _Stored(task_id)
    for key in cast("Iterator[bytes]", store.scan_iter()):
        name = key.decode()
        if task_id in name:
            found.keys[name] = cast(bytes, store.dump(name))
            continue
        kind = cast(bytes, store.type(name))
        pattern = f"*{task_id}*"
        if kind == b"zset":
            members = cast("Iterator[tuple[bytes, float]]", store.zscan_iter(name, pattern))
            found.scored += [(name, member.decode()) for member, _ in members]
        elif kind == b"hash":
            fields = cast("Iterator[tuple[bytes, bytes]]", store.hscan_iter(name, pattern))
            found.counted += [(name, one.decode(), value.decode()) for one, value in fields]
    return found


def _copy(store: redis.Redis, stored: _Stored, count: int, expires_ms: int) -> None:
    """Store a task that often, under other ids; all of it expires at one time, in ms since the epoch."""
    for start in range(0, count, _TOGETHER):
        pipeline: Any = store.pipeline(transaction=False)
        for index in range(start, min(start + _TOGETHER, count)):
            task_id = f"{index:06}{stored.task_id[6:]}"
            for key, value in stored.keys.items():
                pipeline.restore(key.replace(stored.task_id, task_id), expires_ms, value, absttl=True)
            for key, member in stored.scored:
                pipeline.zadd(key, {member.replace(stored.task_id, task_id): expires_ms})
            for key, name, value in stored.counted:
                pipeline.hset(key, name.replace(stored.task_id, task_id), value)
        pipeline.execute()


def _size(store: redis.Redis) -> int:
    return store.dbsize()


async def _until_gone(store: redis.Redis, left: int) -> float:
    """Seconds until the store has no more keys than that."""
    began = time.monotonic()
    while await asyncio.to_thread(_size, store) > left:
        if time.monotonic() - began > _LONGEST_SECONDS:
            raise TimeoutError(f"the tasks were still there after {_LONGEST_SECONDS:g} s")
        await asyncio.sleep(_LOOK_SECONDS)
    return time.monotonic() - began
