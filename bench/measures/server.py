"""CPU of the server's process alone, for one submit and for one get, while the client does not pause."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from bench.client import Client
from bench.run import Findings, Row, Run, connected
from bench.stats import median, ratio
from bench.systems import ADAPTER, FLOOR, OURS, PEER, System

CLIENTS = 8

Slices = dict[str, list[float]]
"""By system, a figure for each slice."""


async def server(run: Run) -> Findings:
    """Submits of eight clients, then gets of a completed task; of the floor, calls that do nothing."""
    each = run.options.size(50, 12)
    systems = await run.systems([FLOOR, OURS, *([ADAPTER, PEER] if run.options.peer else [])])
    submits: Slices = defaultdict(list)
    gets: Slices = defaultdict(list)
    for _ in run.rounds():
        for system in systems:
            submit, get = await _spent(system, each)
            submits[system.name].append(submit)
            gets[system.name].append(get)
    rows = [_row("server CPU, submit", submits, OURS), _row("server CPU, get", gets, OURS)]
    if run.options.peer:
        rows += [
            _row("FastMCP server: server CPU, submit", submits, ADAPTER),
            _row("FastMCP server: server CPU, get", gets, ADAPTER),
        ]
    return Findings(rows, [f"Server CPU: {CLIENTS} clients without a pause, the process of the server alone."])


def _row(what: str, found: Slices, own: str) -> Row:
    """A line of milliseconds. The column of mcp_celery has the server ``own``."""
    columns = {FLOOR: FLOOR, OURS: own, PEER: PEER}
    values = {column: median(found[name]) for column, name in columns.items() if name in found}
    return Row(what, "ms", values, {column: ratio(found[columns[column]], found[FLOOR]) for column in values})


async def _spent(system: System, each: int) -> tuple[float, float]:
    """CPU in ms of one submit, and of one get."""
    async with connected(system.url, CLIENTS) as clients:
        before = system.cpu_seconds()["server"]
        task_ids = await asyncio.gather(*(_submits(system, client, each) for client in clients))
        submit = (system.cpu_seconds()["server"] - before) * 1000 / (CLIENTS * each)
        if system.name == FLOOR:
            return submit, submit
        for task_id in task_ids:
            await clients[0].finish(task_id, 0.05)
        before = system.cpu_seconds()["server"]
        await asyncio.gather(*(_gets(client, task_ids[0], each) for client in clients))
        return submit, (system.cpu_seconds()["server"] - before) * 1000 / (CLIENTS * each)


async def _submits(system: System, client: Client, count: int) -> str:
    """Submit so many tasks; returns the last one's id."""
    task_id = ""
    for _ in range(count):
        if system.name == FLOOR:
            await client.call("noop")
        else:
            task_id, _ = await client.submit("noop")
    return task_id


async def _gets(client: Client, task_id: str, count: int) -> None:
    for _ in range(count):
        await client.get(task_id)
