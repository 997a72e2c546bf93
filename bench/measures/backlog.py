"""A queue that is full when a worker begins: jobs a second, and the worker's CPU a job, beside plain Celery's."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

from celery import Celery

from bench.client import Client
from bench.run import Findings, Row, Run, connected
from bench.stats import median, ratio
from bench.systems import KOMBU, OURS, PLAIN, System
from mcp_celery.common.redis_translation import celery_url

CLIENTS: Final = 8
LOOK_SECONDS: Final = 0.02
LONGEST_SECONDS: Final = 600.0
QUEUES: Final = {OURS: "mcp.bench", KOMBU: "mcp.bench", PLAIN: "celery"}


async def backlog(run: Run) -> Findings:
    """Jobs that wait in a queue are run by one worker, which takes its place at the queue when all are there."""
    count = run.options.size(10_000, 500)
    systems = [await run.system(name) for name in (OURS, KOMBU, PLAIN)]
    rates: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, list[float]] = defaultdict(list)
    for turn in range(run.options.rounds):
        for system in systems[:: 1 if turn % 2 else -1]:
            seconds, cpu = await _drain(system, count)
            rates[system.name].append(count / seconds)
            spent[system.name].append(cpu * 1000 / count)
    speed, cost = ({name: median(found) for name, found in of.items()} for of in (rates, spent))
    return Findings(
        [
            Row(
                f"{count} queued no-op jobs, one worker",
                "jobs/s",
                {OURS: speed[OURS]},
                {OURS: speed[OURS]},
                "jobs/s",
                "more",
            ),
            Row(
                "worker's CPU a no-op job",
                "ms",
                {OURS: cost[OURS]},
                {OURS: ratio(spent[OURS], spent[PLAIN])},
                better="less",
                note="× a plain Celery job on kombu's transport",
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
    assert system.store is not None
    queue = QUEUES[system.name]
    with Celery(broker=celery_url(system.store), set_as_current=False) as app, system.redis() as store:
        control: Any = app.control
        await asyncio.to_thread(_cancel, control, queue)
        if system.name == PLAIN:
            await asyncio.to_thread(_send, app, count)
        else:
            await _submit(system, count)
        await _until(lambda: store.llen(queue) == count, f"{count} jobs wait")
        before = system.cpu_seconds()["worker"]
        started = time.perf_counter()
        await asyncio.to_thread(control.add_consumer, queue, reply=True, timeout=5, limit=1)
        await _until(lambda: not (store.llen(queue) or store.hlen("unacked")), f"{count} jobs have run")
        return time.perf_counter() - started, system.cpu_seconds()["worker"] - before


async def _until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.perf_counter() + LONGEST_SECONDS
    while not reached():
        if time.perf_counter() > deadline:
            raise TimeoutError(f"it took too long until {what}")
        await asyncio.sleep(LOOK_SECONDS)


def _cancel(control: Any, queue: str) -> None:
    while not control.cancel_consumer(queue, reply=True, timeout=2, limit=1):
        time.sleep(LOOK_SECONDS)  # a worker hears commands a moment after it begins to consume


def _send(app: Celery, count: int) -> None:
    for _ in range(count):
        app.send_task("noop")


async def _submit(system: System, count: int) -> None:
    async with connected(system.url, CLIENTS) as clients, asyncio.TaskGroup() as group:
        for index, client in enumerate(clients):
            group.create_task(_submit_some(client, len(range(index, count, CLIENTS))))


async def _submit_some(client: Client, count: int) -> None:
    for _ in range(count):
        await client.submit("noop")
