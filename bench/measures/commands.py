"""Redis commands for submit and run, and for a get: those that a client sends, and those that scripts call inside.

Paced tasks run one at a time; busy ones are submitted by eight clients without a pause. They are not polled. What the
system asks while it is idle (heartbeats, the worker's look for work) is counted over a time, and subtracted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from bench.client import Client
from bench.load import submitted, until_idle
from bench.run import Findings, Row, Run
from bench.systems import OURS, System
from bench.traffic import Traffic, watched

SPACING_SECONDS = 0.1
BUSY_CLIENTS = 8
BUSY_TIMES = 5
"""How many times as many tasks are submitted without a pause."""

_RARE = 0.05
"""What is asked less often than for one in twenty belongs to no task."""

Spent = dict[tuple[str, str], float]


async def commands(run: Run) -> Findings:
    """Commands for each task, and for each get."""
    count = run.options.size(100, 30)
    submit_run: dict[str, float] = {}
    together: dict[str, float] = {}
    get: dict[str, float] = {}
    remarks: list[str] = []
    for system in await run.systems(run.task_systems):
        idle = await _while(system, lambda _client, _task_id: asyncio.sleep(count * SPACING_SECONDS))
        idle_rate = {key: calls / idle.seconds for key, calls in idle.traffic.sent.items()}
        busy = await _while(system, lambda client, _: _submit(client, count))
        crowded = await _while(system, partial(_submit_together, system, count * BUSY_TIMES))
        gets = await _while(system, lambda client, task_id: _get(client, task_id, count))
        spent = _each(busy, idle_rate, count)
        asked = _each(gets, idle_rate, count)
        busiest = _each(crowded, idle_rate, count * BUSY_TIMES)
        together[system.name] = sum(busiest.values())
        submit_run[system.name] = sum(spent.values())
        get[system.name] = sum(asked.values())
        inside = sum(busy.traffic.in_scripts.values()) / count
        total = (busy.traffic.counted - idle.traffic.counted * busy.seconds / idle.seconds) / count
        remarks.append(
            f"{system.name}: {submit_run[system.name]:.1f} commands sent by clients for submit and run, {inside:.1f} "
            f"more called inside Lua ({total:.1f} in `INFO commandstats`); get: {get[system.name]:.1f} sent, "
            f"{sum(gets.traffic.in_scripts.values()) / count:.1f} inside Lua. "
            f"Idle: {sum(idle_rate.values()):.1f} a second, not counted."
        )
        if system.name == OURS:
            remarks += _breakdown("submit and run", spent)
            remarks += _breakdown("submit and run, many at a time", busiest)
            remarks += _breakdown("get", asked)
    return Findings(
        [
            Row("Redis commands, submit and run", "", submit_run, submit_run, "", "less"),
            Row("Redis commands, submit and run, many at a time", "", together, note=f"{BUSY_CLIENTS} clients"),
            Row("Redis commands, get", "", get, get, "", "less"),
        ],
        remarks,
    )


class _Window:
    def __init__(self, traffic: Traffic, seconds: float) -> None:
        self.traffic = traffic
        self.seconds = seconds


async def _while(system: System, work: Callable[[Client, str], Awaitable[None]]) -> _Window:
    async with Client(system.url) as client:
        done, _ = await client.submit("noop")
        await client.finish(done, 0.01)
        await asyncio.sleep(0.5)
        redis = system.redis()
        redis.ping()
        started = time.monotonic()
        with watched(redis) as traffic:
            await work(client, done)
        seconds = time.monotonic() - started
        redis.close()
        return _Window(traffic, seconds)


async def _submit(client: Client, count: int) -> None:
    for _ in range(count):
        await client.submit("noop")
        await asyncio.sleep(SPACING_SECONDS)
    await asyncio.sleep(0.5)


async def _submit_together(system: System, count: int, *_: object) -> None:
    await submitted(system, count, clients=BUSY_CLIENTS)
    await until_idle(system)


async def _get(client: Client, task_id: str, count: int) -> None:
    for _ in range(count):
        await client.get(task_id)


def _each(window: _Window, idle_rate: Spent, count: int) -> Spent:
    """Commands for each of ``count``, without what is asked anyway."""
    each = {
        key: (calls - idle_rate.get(key, 0.0) * window.seconds) / count for key, calls in window.traffic.sent.items()
    }
    return {key: calls for key, calls in each.items() if calls >= _RARE}


def _breakdown(what: str, spent: Spent) -> list[str]:
    """One line for each purpose, the dearest first."""
    purposes: dict[str, float] = {}
    names: dict[str, list[str]] = {}
    for (purpose, name), calls in spent.items():
        purposes[purpose] = purposes.get(purpose, 0.0) + calls
        names.setdefault(purpose, []).append(f"{name} {calls:.1f}")
    return [
        f"{what} | {purpose} | {calls:.1f} | {', '.join(sorted(names[purpose]))}"
        for purpose, calls in sorted(purposes.items(), key=lambda pair: -pair[1])
    ]
