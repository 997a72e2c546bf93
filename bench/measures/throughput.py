"""No-op tasks a second with polling clients, and CPU seconds a task; many jobs that wait, in one worker process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from bench.client import Client, WrongAnswerError
from bench.run import Findings, Row, Run, connected
from bench.stats import median, ratio
from bench.systems import LONE_PEER, OURS, PEER, TUNED_PEER, System

CLIENTS = 32
POLL_SECONDS = 0.05
"""Seldom enough that the polls, of which a slow system gets more, do not become what is measured."""
LONGEST_SECONDS = 10
SLEEP_CLIENTS = 8
SLEEP_POLL_SECONDS = 0.05
SLEEP_SECONDS = 0.5


async def throughput(run: Run) -> Findings:
    """Tasks a second: each client submits a no-op, asks every 50 ms until it has completed, and submits the next."""
    each = run.options.size(25, 8)
    names = [*run.task_systems, *([TUNED_PEER] if run.options.peer else [])]
    systems = await run.systems(names)
    rates: dict[str, list[float]] = defaultdict(list)
    errors: Counter[str] = Counter()
    for _ in run.rounds():
        for system in systems:
            rate, failed = await rate_of(system, each)
            rates[system.name].append(rate)
            errors[system.name] += failed
    values = {name: median(found) for name, found in rates.items()}
    rows = [Row("no-op tasks, polled", "tasks/s", values)]
    if run.options.peer:
        rows = [
            Row(
                f"no-op tasks, polled, against {'its best setting' if peer == TUNED_PEER else 'FastMCP 4'}",
                "tasks/s",
                {OURS: values[OURS], PEER: values[peer]},
                {OURS: ratio(rates[OURS], rates[peer]), PEER: 1.0},
                better="more",
            )
            for peer in (PEER, TUNED_PEER)
        ]
    return Findings(
        rows,
        [
            (
                f"{CLIENTS} clients on a connection each, asking every {POLL_SECONDS * 1000:g} ms. FastMCP's best "
                "setting: concurrency 200, a look for work every 5 ms. Tasks that failed: "
                + (", ".join(f"{name} {found}" for name, found in errors.items() if found) or "none")
                + "."
            ),
        ],
    )


async def rate_of(system: System, each: int) -> tuple[float, int]:
    """No-op tasks a second of clients that run so many each, and how many did not complete."""
    async with connected(system.url, CLIENTS) as clients:
        started = time.perf_counter()
        done = await asyncio.gather(*[_submit_and_poll(client, each) for client in clients])
        return sum(done) / (time.perf_counter() - started), CLIENTS * each - sum(done)


async def _submit_and_poll(client: Client, count: int) -> int:
    """Run that many tasks; those that end in an error, or not within some seconds, are not counted."""
    done = 0
    for _ in range(count):
        with suppress(WrongAnswerError):
            task_id, _ = await client.submit("noop")
            await client.finish(task_id, POLL_SECONDS, LONGEST_SECONDS)
            done += 1
    return done


async def _all(work: Any) -> None:
    coroutines: list[Coroutine[Any, Any, None]] = list(work)
    async with asyncio.TaskGroup() as group:
        for one in coroutines:
            group.create_task(one)


async def sleeps(run: Run) -> Findings:
    """How long 200 jobs of half a second take in one worker process."""
    count = run.options.size(200, 20)
    names = [OURS, *([LONE_PEER] if run.options.peer else [])]
    systems = await run.systems(names)
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in run.rounds(3):
        for system in systems:
            async with connected(system.url, SLEEP_CLIENTS) as clients:
                started = time.perf_counter()
                shares = [range(index, count, SLEEP_CLIENTS) for index in range(SLEEP_CLIENTS)]
                await _all(_sleep_share(client, len(share)) for client, share in zip(clients, shares, strict=True))
                taken[system.name].append(time.perf_counter() - started)
    values = {PEER if name == LONE_PEER else name: median(found) for name, found in taken.items()}
    return Findings(
        [
            Row(
                f"{count} × {SLEEP_SECONDS:g} s sleeps",
                "s",
                values,
                values if count == 200 else {},
                "s",
                "less",
                note="submit to the last completed",
            )
        ],
        [
            (
                "Sleeps: default settings, that is 100 to 1,000 jobs at a time in one worker here, and 10 in FastMCP's "
                "server, which is a worker itself."
            )
        ],
    )


async def _sleep_share(client: Client, count: int) -> None:
    task_ids = [(await client.submit("sleep", seconds=SLEEP_SECONDS))[0] for _ in range(count)]
    for task_id in task_ids:
        await client.finish(task_id, SLEEP_POLL_SECONDS)


async def cpu(run: Run) -> Findings:
    """CPU seconds a task of server, worker and store: submitted by eight clients, then asked for when it is over."""
    each = run.options.size(50, 12)
    systems = await run.systems(run.task_systems)
    spent: dict[str, list[float]] = defaultdict(list)
    roles: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in run.rounds():
        for system in systems:
            for role, seconds in (await cpu_of(system, each)).items():
                roles[system.name][role].append(seconds * 1000)
            spent[system.name].append(sum(found[-1] for found in roles[system.name].values()))
    values = {name: median(found) for name, found in spent.items()}
    figures = {OURS: ratio(spent[OURS], spent[PEER]), PEER: 1.0} if run.options.peer else {}
    shares = [
        f"{name}: " + ", ".join(f"{role} {median(found):.2f}" for role, found in of.items())
        for name, of in roles.items()
    ]
    capacity = [
        Row(
            f"{role}: tasks a second of one processor",
            "tasks/s",
            # FastMCP's server runs a part of the jobs, so its figures of server and worker say nothing apart.
            {name: 1000 / median(of[role]) for name, of in roles.items() if name == OURS or role == "store"},
            sizing=True,
        )
        for role in ("server", "worker", "store")
    ]
    return Findings(
        [Row("CPU a task, all processes", "ms", values, figures, better="less"), *capacity],
        [f"CPU in ms a task (submit, run, one get): {'; '.join(shares)}."],
    )


async def cpu_of(system: System, each: int) -> dict[str, float]:
    """CPU seconds a task, by role, of eight clients that submit so many each."""
    clients_count = 8
    async with connected(system.url, clients_count) as clients:
        before = system.cpu_seconds()
        submitted: list[list[str]] = []
        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(_submit_some(client, each)) for client in clients]
        submitted = [job.result() for job in jobs]
        # The last first: when it is over, so are nearly all others, and one get is enough for each of them.
        await clients[0].finish(submitted[0][-1], 0.1)
        # The clients in turns: a server closes a connection that is idle for some seconds.
        for task_ids in zip(*submitted, strict=True):
            for client, task_id in zip(clients, task_ids, strict=True):
                await client.finish(task_id, 0.1)
        after = system.cpu_seconds()
    return {role: (after[role] - before[role]) / (clients_count * each) for role in after}


async def _submit_some(client: Client, count: int) -> list[str]:
    return [(await client.submit("noop"))[0] for _ in range(count)]
