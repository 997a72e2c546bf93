"""Submit and get, one request after the other on one connection: p50 of each slice, as a ratio to the floor's."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from bench.client import Client
from bench.run import Better, Findings, Row, Run
from bench.stats import median, percentile, ratio
from bench.systems import FLOOR

PAUSE_SECONDS = 0.015
"""Between two submits, so that a job's work on the other processor does not count as the next submit's latency."""
LONG_SECONDS = 3600.0
_UNTIL_JOBS_ARE_DONE = 0.5
_UNTIL_IT_RUNS = 0.3
_UNTIL_IT_IS_REPLACED = 0.5

Taken = dict[str, list[list[float]]]
"""By system, a list of seconds for each slice."""


async def submit(run: Run) -> Findings:
    """Submit p50 and p95, with pauses and without."""
    count = run.options.size(60, 20)
    systems = await run.systems(run.all_systems)
    paced: Taken = defaultdict(list)
    unpaced: Taken = defaultdict(list)
    for _ in run.rounds():
        for system in systems:
            ask = noop_call if system.store is None else submit_call
            async with Client(system.url) as client:
                paced[system.name].append([await ask(client) for _ in range(count) if await _pause()])
                unpaced[system.name].append([await ask(client) for _ in range(count)])
            await asyncio.sleep(_UNTIL_JOBS_ARE_DONE)
    return Findings(
        [
            row("submit, p50", paced, 50, "less"),
            row("submit, p95", paced, 95),
            row("submit without pause, p50", unpaced, 50),
        ],
        [
            (
                f"Submits are {PAUSE_SECONDS * 1000:g} ms apart, and so are the floor's calls next to them. Without a "
                "pause the processors are shared with the jobs of the submits before, on as many as this machine has."
            ),
        ],
    )


async def get(run: Run) -> Findings:
    """Get p50 of a task that works, and of one that has completed."""
    count = run.options.size(200, 50)
    systems = await run.systems(run.all_systems)
    working: Taken = defaultdict(list)
    completed: Taken = defaultdict(list)
    for _ in run.rounds():
        for system in systems:
            async with Client(system.url) as client:
                if system.store is None:
                    completed[FLOOR].append([await noop_call(client) for _ in range(count)])
                    working[FLOOR].append(completed[FLOOR][-1])
                else:
                    completed[system.name].append(await gets_completed(client, count))
                    working[system.name].append(await gets_working(client, count))
    return Findings(
        [
            row("get while working, p50", working, 50, "less"),
            row("get when completed, p50", completed, 50, "less"),
            row("get when completed, p95", completed, 95),
        ]
    )


async def _pause() -> bool:
    await asyncio.sleep(PAUSE_SECONDS)
    return True


async def noop_call(client: Client) -> float:
    """Seconds of a foreground call that does nothing."""
    answer = await client.call("noop")
    assert answer.result
    return answer.seconds


async def get_call(client: Client, task_id: str) -> float:
    """Seconds of a ``tasks/get``."""
    answer = await client.get(task_id)
    assert answer.result
    return answer.seconds


async def submit_call(client: Client) -> float:
    """Seconds of a call that becomes a task."""
    return (await client.submit("noop"))[1]


async def gets_completed(client: Client, count: int) -> list[float]:
    """Seconds of ``tasks/get`` of a task that has completed."""
    task_id, _ = await client.submit("noop")
    await client.finish(task_id, 0.01)
    return [await get_call(client, task_id) for _ in range(count)]


async def gets_working(client: Client, count: int) -> list[float]:
    """Seconds of ``tasks/get`` of a task whose job runs."""
    task_id, _ = await client.submit("sleep", seconds=LONG_SECONDS)
    await asyncio.sleep(_UNTIL_IT_RUNS)
    taken = [await get_call(client, task_id) for _ in range(count)]
    await client.cancel(task_id)
    await asyncio.sleep(_UNTIL_IT_IS_REPLACED)  # where a cancel ends the worker process that runs the job
    return taken


def row(what: str, taken: Taken, percent: float, better: Better | None = None, note: str = "") -> Row:
    """A line of milliseconds, with ratios to the floor of the same round."""
    slices = {name: [percentile(one, percent) for one in found] for name, found in taken.items()}
    return Row(
        what,
        "ms",
        {name: median(found) * 1000 for name, found in slices.items()},
        {name: ratio(found, slices[FLOOR]) for name, found in slices.items() if name != FLOOR},
        better=better,
        note=note,
    )
