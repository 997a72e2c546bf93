"""A FastMCP 4 server whose tasks run on mcp_celery, beside the same server on FastMCP's own Docket."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from bench.client import Client
from bench.measures.latency import PAUSE_SECONDS, gets_completed, gets_working, submit_call
from bench.measures.push import polled_together, pushed
from bench.measures.throughput import cpu_of
from bench.run import Findings, NotMeasuredError, Row, Run
from bench.stats import median, percentile, ratio
from bench.systems import ADAPTER, OURS, PEER

Slices = dict[str, list[float]]
"""By system, a figure for each slice."""


async def adapter(run: Run) -> Findings:
    """Submit, get, CPU time and push. The column of mcp_celery has the FastMCP server on mcp_celery."""
    if not run.options.peer:
        raise NotMeasuredError("FastMCP servers on mcp_celery are measured beside FastMCP 4 only")
    systems = await run.systems([ADAPTER, PEER])
    slices: dict[str, Slices] = defaultdict(lambda: defaultdict(list))
    for _ in run.rounds():
        for system in systems:
            async with Client(system.url) as client:
                submits: list[float] = []
                for _ in range(run.options.size(60, 20)):
                    await asyncio.sleep(PAUSE_SECONDS)
                    submits.append(await submit_call(client))
                slices["submit"][system.name].append(percentile(submits, 50))
                gets = run.options.size(200, 50)
                slices["get when completed"][system.name].append(percentile(await gets_completed(client, gets), 50))
                slices["get while working"][system.name].append(percentile(await gets_working(client, gets), 50))
            spent = await cpu_of(system, run.options.size(50, 12))
            slices["cpu"][system.name].append(sum(spent.values()) * 1000)
    ours, theirs = systems
    pushes = [await pushed(ours) for _ in range(run.options.size(50, 15))]
    polls = await polled_together(theirs, run.options.size(40, 10))
    rows = [
        _faster("submit, p50", slices["submit"]),
        _faster("get while working, p50", slices["get while working"]),
        _faster("get when completed, p50", slices["get when completed"]),
        _row("CPU per task", "ms", slices["cpu"]),
        Row(
            _NAMED.format("job's end to client notified, p50"),
            "ms",
            {OURS: percentile(pushes, 50), PEER: percentile(polls, 50)},
            {OURS: percentile(pushes, 50)},
            "ms",
            "less",
        ),
    ]
    return Findings(
        rows,
        [
            (
                "Rows of a FastMCP server: the same tools, once with `mcp_celery.fastmcp.TasksExtension` and a Celery "
                "worker (the column of mcp_celery), once with `fastmcp_tasks.TasksExtension` and a worker of Docket's. "
                "Submit and get: how many times faster it is on mcp_celery. CPU: the share of what Docket needs."
            ),
        ],
    )


_NAMED = "FastMCP server: {}"


def _faster(what: str, found: Slices) -> Row:
    """A line of milliseconds, and how much faster the server is on mcp_celery."""
    values = {column: median(found[name]) * 1000 for column, name in ((OURS, ADAPTER), (PEER, PEER))}
    return Row(_NAMED.format(what), "ms", values, {OURS: ratio(found[PEER], found[ADAPTER])}, better="more")


def _row(what: str, unit: str, found: Slices) -> Row:
    values = {column: median(found[name]) for column, name in ((OURS, ADAPTER), (PEER, PEER))}
    return Row(_NAMED.format(what), unit, values, {OURS: ratio(found[ADAPTER], found[PEER])})
