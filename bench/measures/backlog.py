"""A queue that is full when a worker begins: jobs a second, and the worker's CPU a job, beside plain Celery's."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Final

from celery import Celery

from bench.load import submitted
from bench.queues import celery_of, start_consuming, stop_consuming, until
from bench.run import Findings, Row, Run
from bench.stats import median, ratio
from bench.systems import KOMBU, OURS, PLAIN, System

CLIENTS: Final = 8
MOST_ROUNDS: Final = 3
"""A round of three queues takes minutes."""


async def backlog(run: Run) -> Findings:
    """Jobs that wait in a queue are run by one worker, which takes its place at the queue when all are there."""
    count = run.options.size(10_000, 500)
    rates: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, list[float]] = defaultdict(list)
    async with run.own(OURS, KOMBU, PLAIN) as systems:
        for turn in run.rounds(MOST_ROUNDS):
            for system in systems[:: 1 if turn % 2 else -1]:
                seconds, cpu = await _drain(system, count)
                run.report(f"{count} jobs of {system.name} took {seconds:.0f} s")
                rates[system.name].append(count / seconds)
                spent[system.name].append(cpu * 1000 / count)
    speed, cost = ({name: median(found) for name, found in of.items()} for of in (rates, spent))
    return Findings(
        [
            Row(
                f"{count} queued no-op jobs, one worker",
                "jobs/s",
                {name: speed[name] for name in (OURS, PLAIN)},
                {OURS: speed[OURS]},
                "jobs/s",
                "more",
            ),
            Row(
                "worker's CPU a no-op job",
                "ms",
                {name: cost[name] for name in (OURS, PLAIN)},
                {OURS: ratio(spent[OURS], spent[PLAIN])},
                better="less",
                note="× a job of plain Celery on kombu's transport",
            ),
        ],
        [
            f"{count} queued no-op jobs, jobs/s and ms of the worker's CPU a job: "
            + "; ".join(f"{name} {speed[name]:.0f}, {cost[name]:.2f}" for name in speed)
            + "."
        ],
    )


async def _drain(system: System, count: int) -> tuple[float, float]:
    """Seconds until a worker has run and acknowledged that many jobs, and its CPU seconds for them."""
    with celery_of(system) as app, system.redis() as store:
        await stop_consuming(app, system)
        if system.name == PLAIN:
            await asyncio.to_thread(_send, app, count)
        else:
            await submitted(system, count, clients=CLIENTS)
        await until(lambda: store.llen(system.queue) == count, f"{count} jobs wait")
        before = system.cpu_seconds()["worker"]
        started = time.perf_counter()
        await start_consuming(app, system)
        await until(lambda: not (store.llen(system.queue) or store.hlen("unacked")), f"{count} jobs have run")
        return time.perf_counter() - started, system.cpu_seconds()["worker"] - before


def _send(app: Celery, count: int) -> None:
    for _ in range(count):
        app.send_task("noop")
