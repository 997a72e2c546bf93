"""Other ways to run it: RabbitMQ as the broker, the prefork pool, a store on another machine. Beside the default."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Final

import redis

from bench import rabbitmq as broker
from bench.client import Client
from bench.measures.latency import PAUSE_SECONDS, gets_completed, noop_call, submit_call
from bench.measures.throughput import cpu_of, rate_of
from bench.run import Findings, NotMeasuredError, Row, Run
from bench.stats import median, percentile, ratio
from bench.systems import FAR, FAR_PEER, FLOOR, OURS, PEER, PREFORK, RABBITMQ, System

MOST_ROUNDS: Final = 5
"""A round of five systems takes half a minute."""

Slices = dict[str, list[float]]
"""By system, a figure for each round."""


async def rabbitmq(run: Run) -> Findings:
    """RabbitMQ as the broker; records and results stay in the store."""
    if (refusal := broker.refusal(run.options.amqp)) is not None:
        raise NotMeasuredError(f"no RabbitMQ answers at the URL of --amqp: {refusal}")
    found = await _compared(run, "RabbitMQ", {OURS: RABBITMQ})
    found.remarks.append(
        "The broker is the machine's RabbitMQ. Its CPU is in the sum, with that of others who use it."
        if broker.process() is not None
        else "The broker is not the one RabbitMQ of this machine, so its CPU is not in the sum."
    )
    return found


async def prefork(run: Run) -> Findings:
    """Processes as the worker's pool, as many as there are processors."""
    return await _compared(run, "prefork", {OURS: PREFORK})


async def distance(run: Run) -> Findings:
    """Each round trip to the store takes a millisecond longer, of server and worker."""
    names = {OURS: FAR, PEER: FAR_PEER} if run.options.peer else {OURS: FAR}
    return await _compared(run, "store 1 ms away", names)


async def _compared(run: Run, label: str, names: dict[str, str]) -> Findings:
    """The rows of systems beside the default ones.

    Args:
        run: The run.
        label: How the rows' names begin.
        names: The measured system of each column.
    """
    submits, gets, spent, rates = (defaultdict[str, list[float]](list) for _ in range(4))
    roles: dict[str, Slices] = defaultdict(lambda: defaultdict(list))
    failed = 0
    async with run.own(*names.values()) as own:
        systems = [await run.system(FLOOR), *own, *(await run.systems(list(names)))]
        for turn in run.rounds(MOST_ROUNDS):
            for system in systems[:: 1 if turn % 2 else -1]:
                submits[system.name].append(await _submit(system, run.options.size(60, 20)))
                gets[system.name].append(await _get(system, run.options.size(200, 50)))
                if system.name == FLOOR:
                    continue
                for role, seconds in (found := await cpu_of(system, run.options.size(25, 12))).items():
                    roles[system.name][role].append(seconds * 1000)
                spent[system.name].append(sum(found.values()) * 1000)
                rate, lost = await rate_of(system, run.options.size(15, 8))
                rates[system.name].append(rate)
                failed += lost
        trips = [await asyncio.to_thread(_round_trip, system) for system in own if system.reached is not None]
    remarks = [
        "CPU in ms a task (submit, run, one get): "
        + "; ".join(
            f"{name}: {', '.join(f'{role} {median(found):.2f}' for role, found in roles[name].items())}"
            for pair in names.items()
            for name in pair
        )
        + f". Tasks that failed: {failed}."
    ]
    remarks += [
        f"A `PING` takes {near:.2f} ms, and {far:.2f} ms through the proxy (`bench/delay.py`), which adds 1 ms to each "
        "answer. The proxy's CPU is not counted, but shares the processors."
        for near, far in trips[:1]
    ]
    return Findings(
        [
            _beside(f"{label}: submit, p50", "ms", names, submits, FLOOR),
            _beside(f"{label}: get when completed, p50", "ms", names, gets, FLOOR),
            _beside(f"{label}: CPU a task, all processes", "ms", names, spent),
            _beside(f"{label}: no-op tasks, polled", "tasks/s", names, rates),
        ],
        remarks,
    )


def _beside(what: str, unit: str, names: dict[str, str], found: Slices, beside: str | None = None) -> Row:
    """A line with ratios to one system, or to each column's default."""
    values = {column: median(found[name]) for column, name in names.items()}
    figures = {column: ratio(found[name], found[beside or column]) for column, name in names.items()}
    if beside is None:
        return Row(what, unit, values, figures, note="× the default")
    return Row(what, unit, {beside: median(found[beside]), **values}, figures)


async def _submit(system: System, count: int) -> float:
    """Submit p50 in ms, with pauses."""
    ask = noop_call if system.name == FLOOR else submit_call
    taken: list[float] = []
    async with Client(system.url) as client:
        for _ in range(count):
            await asyncio.sleep(PAUSE_SECONDS)
            taken.append(await ask(client))
    return percentile(taken, 50) * 1000


async def _get(system: System, count: int) -> float:
    """Get p50 in ms, of a completed task."""
    async with Client(system.url) as client:
        if system.name == FLOOR:
            return percentile([await noop_call(client) for _ in range(count)], 50) * 1000
        return percentile(await gets_completed(client, count), 50) * 1000


def _round_trip(system: System) -> tuple[float, float]:
    """Milliseconds of a ``PING`` to a store, and of one through the proxy before it."""
    assert system.store is not None
    assert system.reached is not None
    found: list[float] = []
    for url in (system.store, system.reached):
        taken: list[float] = []
        with redis.Redis.from_url(url) as client:
            for _ in range(200):
                started = time.perf_counter()
                client.ping()
                taken.append(time.perf_counter() - started)
        found.append(median(taken) * 1000)
    return found[0], found[1]
