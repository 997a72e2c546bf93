"""A thousand gets at once, a connection each: how many fail, and how long the slowest wait."""

from __future__ import annotations

import asyncio
import time

from bench.client import Client, WrongAnswerError
from bench.measures.latency import get_call, noop_call
from bench.run import Findings, Row, Run, connected
from bench.stats import percentile
from bench.systems import System

CROWD = 1_000


async def crowd(run: Run) -> Findings:
    """Errors and p99."""
    errors: dict[str, float] = {}
    slowest: dict[str, float] = {}
    kinds: list[str] = []
    for system in await run.systems(run.all_systems):
        found = [await _rush(system) for _ in range(run.options.size(3, 1))]
        failures = [kind for _, failed in found for kind in failed]
        errors[system.name] = len(failures) / len(found)
        answered = [one for seconds, _ in found for one in seconds]
        slowest[system.name] = percentile(answered, 99) * 1000 if answered else float("nan")
        if failures:
            kinds.append(f"{system.name}: {max(set(failures), key=failures.count)}")
    remarks = [f"Most common error of {CROWD} concurrent gets: {'; '.join(kinds)}."] if kinds else []
    return Findings(
        [
            Row(f"errors of {CROWD} concurrent gets", "", errors, errors, "", "less"),
            Row(f"{CROWD} concurrent gets, p99", "ms", slowest),
        ],
        remarks,
    )


async def _rush(system: System) -> tuple[list[float], list[str]]:
    """Seconds of those that were answered, and the errors of those that were not."""
    async with connected(system.url, CROWD) as clients:
        task_id = ""
        if system.store is not None:
            task_id, _ = await clients[0].submit("noop")
            await clients[0].finish(task_id, 0.01)
        started = time.perf_counter()
        outcomes = await asyncio.gather(*[_one(client, task_id, started) for client in clients])
    seconds = [one for one in outcomes if isinstance(one, float)]
    return seconds, [one for one in outcomes if isinstance(one, str)]


async def _one(client: Client, task_id: str, started: float) -> float | str:
    try:
        await (get_call(client, task_id) if task_id else noop_call(client))
    except (WrongAnswerError, OSError, EOFError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:160]
    return time.perf_counter() - started
