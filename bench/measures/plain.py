"""Plain Celery as a line of reference: to send a job that does nothing, and the CPU that it costs. No MCP, no HTTP."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from celery import Celery

from bench.load import until_idle
from bench.measures.latency import PAUSE_SECONDS
from bench.queues import celery_of
from bench.run import Findings, Row, Run
from bench.stats import median, percentile
from bench.systems import PLAIN

WARM_UP_JOBS: Final = 40


async def celery(run: Run) -> Findings:
    """Send a job from a Celery app of this process; the worker runs it on Celery's default pool."""
    count = run.options.size(400, 100)
    sends: list[float] = []
    spent: dict[str, list[float]] = {}
    async with run.own(PLAIN) as (system,):
        with celery_of(system) as app:
            await asyncio.to_thread(_send, app, WARM_UP_JOBS)
            await until_idle(system)
            for _ in run.rounds():
                sends.append(percentile(await asyncio.to_thread(_send_paced, app, run.options.size(60, 20)), 50) * 1000)
                await until_idle(system)
                before = system.cpu_seconds()
                sender = await asyncio.to_thread(_send, app, count)
                await until_idle(system)
                after = system.cpu_seconds()
                used = {"sender": sender, **{role: after[role] - before[role] for role in after}}
                for role, seconds in used.items():
                    spent.setdefault(role, []).append(seconds * 1000 / count)
    total = [sum(each) for each in zip(*spent.values(), strict=True)]
    shares = ", ".join(f"{role} {median(found):.2f}" for role, found in spent.items())
    return Findings(
        [
            Row("plain Celery: send a job, p50", "ms", {PLAIN: median(sends)}),
            Row("plain Celery: CPU a job, all processes", "ms", {PLAIN: median(total)}),
        ],
        [
            (
                f"Plain Celery: `task_acks_late`, events, results in Redis, prefork; without HTTP, and no client reads "
                f"a result. CPU in ms a job: {shares}. Jobs a second are in `backlog`."
            )
        ],
    )


def _send(app: Celery, count: int) -> float:
    """CPU seconds of sending that many jobs."""
    started = time.thread_time()
    for _ in range(count):
        app.send_task("noop")
    return time.thread_time() - started


def _send_paced(app: Celery, count: int) -> list[float]:
    """Seconds of each job that is sent, with pauses."""
    taken: list[float] = []
    for _ in range(count):
        time.sleep(PAUSE_SECONDS)
        started = time.perf_counter()
        app.send_task("noop")
        taken.append(time.perf_counter() - started)
    return taken
