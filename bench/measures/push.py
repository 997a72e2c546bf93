"""How long after a job's body has ended its client knows: by push, or by polling at the server's interval."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.client import JSON, Client, WrongAnswerError
from bench.run import Findings, Row, Run
from bench.stats import percentile
from bench.systems import OURS, PEER, System

BODY_SECONDS = 0.05


async def push(run: Run) -> Findings:
    """From the tool's last line (it returns the clock) to the client's reading of the result."""
    count = run.options.size(50, 15)
    ours = await run.system(OURS)
    latencies: dict[str, list[float]] = {OURS: []}
    peer: System | None = await run.system(PEER) if run.options.peer else None
    for _ in run.rounds():
        latencies[OURS] += [await pushed(ours) for _ in range(count)]
    if peer is not None:
        latencies[PEER] = await polled_together(peer, run.options.size(40, 10))
    rows = [
        _row("push: job's end to client notified, p50", latencies, 50),
        _row("push: job's end to client notified, p95", latencies, 95),
    ]
    return Findings(
        rows,
        [
            (
                "Push: one task at a time on a stream of its own; the tool returns the clock as its last act, so the "
                "time holds all that follows. FastMCP 4 has no push: its tasks are asked for "
                "as often as it says, every 5 s by default."
            ),
        ],
    )


async def pushed(system: System) -> float:
    """Milliseconds from a job's end to the client that listens to its task."""
    async with Client(system.url) as client, Client(system.url) as listener:
        task_id, _ = await client.submit("stamp", seconds=BODY_SECONDS)
        async for message, read_at in listener.listen(task_id):
            params: dict[str, Any] = message.get("params", {})
            if message.get("method") == "notifications/tasks" and params["status"] == "completed":
                return (read_at - _stamp(params)) / 1e6
    raise WrongAnswerError("the stream ended before its task")


async def polled_together(system: System, count: int) -> list[float]:
    """Tasks whose ends are spread over the poll interval, each asked for at that interval."""
    async with asyncio.TaskGroup() as group:
        polls = [group.create_task(_polled(system, index / count)) for index in range(count)]
    return [poll.result() for poll in polls]


async def _polled(system: System, fraction: float) -> float:
    async with Client(system.url) as client:
        created = (await client.call("stamp", seconds=0.5 + 4 * fraction)).result
    while True:
        await asyncio.sleep(created["pollIntervalMs"] / 1000)
        # A connection each time: servers close those that are idle for so long.
        async with Client(system.url) as client:
            task = (await client.get(created["taskId"])).result
        if task["status"] == "completed":
            return (time.time_ns() - _stamp(task)) / 1e6


def _stamp(task: JSON) -> int:
    return int(task["result"]["content"][0]["text"])


def _row(what: str, latencies: dict[str, list[float]], percent: float) -> Row:
    values = {name: percentile(found, percent) for name, found in latencies.items()}
    return Row(what, "ms", values, values, "ms", "less")
