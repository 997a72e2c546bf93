"""Many connections that ask at once: how many requests fail, and how long the slowest take."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from bench.client import Client, WrongAnswerError
from bench.load import until_idle
from bench.measures.latency import get_call, noop_call, submit_call
from bench.run import Findings, Row, Run, connected
from bench.stats import median, percentile
from bench.systems import FLOOR, System


@dataclass(frozen=True, slots=True)
class Kind:
    """A crowd: so many connections, each with so many requests, one after the other."""

    what: str
    connections: int
    each: int


async def crowd(run: Run) -> Findings:
    """Errors, p99 and the time until the last answer; of the floor, calls that do nothing."""
    size = run.options.size
    kinds = (
        Kind("gets", size(1_000, 100), 1),
        Kind("gets", size(2_000, 200), 2),
        Kind("creations", size(1_000, 100), 2),
    )
    found = [await _crowd(run, kind) for kind in kinds]
    return Findings([row for rows, _ in found for row in rows], [remark for _, remarks in found for remark in remarks])


async def _crowd(run: Run, kind: Kind) -> tuple[list[Row], list[str]]:
    errors: dict[str, float] = {}
    slowest: dict[str, float] = {}
    lasted: dict[str, float] = {}
    kinds: list[str] = []
    name = f"{kind.connections * kind.each} {kind.what} over {kind.connections} connections"
    for system in await run.systems(run.all_systems):
        run.report(f"{name}, {system.name}")
        rushes = [await _rush(system, kind) for _ in range(run.options.size(3, 1))]
        failures = Counter(text for rush in rushes for text in rush.failures)
        errors[system.name] = failures.total() / len(rushes)
        lasted[system.name] = median([rush.seconds for rush in rushes])
        if answered := [one for rush in rushes for one in rush.answered]:
            slowest[system.name] = percentile(answered, 99) * 1000
        kinds += [f"{system.name}: {text}" for text, _ in failures.most_common(1)]
    rows = [
        Row(f"errors of {name}", "", errors, errors, "", "less"),
        Row(f"{name}, p99", "ms", slowest),
        Row(f"{name}, until the last answer", "s", lasted),
    ]
    return rows, [f"Most common error of {name}: {'; '.join(kinds)}."] if kinds else []


@dataclass(frozen=True, slots=True)
class _Rush:
    """Seconds of the requests that were answered, the errors of those that were not, and seconds in all."""

    answered: list[float]
    failures: list[str]
    seconds: float


async def _rush(system: System, kind: Kind) -> _Rush:
    async with connected(system.url, kind.connections) as clients:
        task_id = ""
        if kind.what == "gets" and system.name != FLOOR:
            task_id, _ = await clients[0].submit("noop")
            await clients[0].finish(task_id, 0.01)
        started = time.perf_counter()
        outcomes = await asyncio.gather(*[_ask(client, system, task_id, kind.each) for client in clients])
        seconds = time.perf_counter() - started
    if kind.what == "creations":
        with suppress(TimeoutError):  # what is still busy slows the next rush down, which its figures then show
            await until_idle(system)
    flat = [one for found in outcomes for one in found]
    return _Rush(
        [one for one in flat if isinstance(one, float)], [one for one in flat if isinstance(one, str)], seconds
    )


async def _ask(client: Client, system: System, task_id: str, count: int) -> list[float | str]:
    """Seconds of each request, or its error. A connection that is lost answers no further ones."""
    found: list[float | str] = []
    for _ in range(count):
        started = time.perf_counter()
        try:
            if system.name == FLOOR:
                await noop_call(client)
            else:
                await (get_call(client, task_id) if task_id else submit_call(client))
        except (WrongAnswerError, OSError, EOFError, ValueError) as error:
            found.append(f"{type(error).__name__}: {error}"[:160])
        else:
            found.append(time.perf_counter() - started)
    return found
