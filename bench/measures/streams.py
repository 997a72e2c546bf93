"""Two thousand ``subscriptions/listen`` streams, each to a task of its own: memory, idle CPU, growth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from bench.client import Client
from bench.load import submitted, until_idle
from bench.queues import celery_of, stop_consuming
from bench.run import Findings, Row, Run
from bench.systems import LISTENED, OURS, System

KIB: Final = 1024


async def streams(run: Run) -> Findings:
    """Memory of the server a stream, and its CPU; then the streams end, and as many others are opened."""
    count = run.options.size(2_000, 200)
    idle_seconds = run.options.size(30, 5)
    async with run.own(LISTENED) as (system,):
        with celery_of(system) as app:
            await stop_consuming(app, system)  # the tasks stay open, and cost nothing meanwhile
        task_ids = await submitted(system, count)
        await until_idle(system)
        alone = await _idle_percent(system, idle_seconds)
        sizes: list[int] = [_server_bytes(system)]
        open_percent = 0.0
        for wave in range(2):
            run.report(f"wave {wave + 1} of 2")
            async with _streams(system, task_ids):
                run.report(f"{count} streams are open")
                await until_idle(system)
                sizes.append(_server_bytes(system))
                if not wave:
                    open_percent = await _idle_percent(system, idle_seconds)
            run.report("the streams are closed")
            await until_idle(system)
    before, first, second = sizes
    return Findings(
        [
            Row("server: memory of a listen stream", "KiB", {OURS: (first - before) / count / KIB}, sizing=True),
            Row(f"CPU of the idle server with {count} listen streams", "% of a processor", {OURS: open_percent}),
            Row(f"growth of the server with a second {count} streams", "MiB", {OURS: (second - first) / KIB / KIB}),
        ],
        [
            (
                "Streams (`MCP_CELERY_MAX_STREAMS_PER_SCOPE=10000`): each has a connection and a task of its own. "
                "Without streams the idle server takes "
                f"{alone:.1f} % of a processor. Memory (USS) is {before / KIB / KIB:.1f} MiB without "
                f"them, {first / KIB / KIB:.1f} with the first and {second / KIB / KIB:.1f} with the second."
            )
        ],
    )


@asynccontextmanager
async def _streams(system: System, task_ids: list[str]) -> AsyncGenerator[None]:
    """A stream to each task, from when the server has acknowledged all."""
    async with AsyncExitStack() as stack:
        for task_id in task_ids:
            client = await stack.enter_async_context(Client(system.url))  # which the server closes if it asks nothing
            stream = client.listen(task_id)
            stack.push_async_callback(stream.aclose)
            await anext(stream)
        yield


def _server_bytes(system: System) -> int:
    return sum(system.own_bytes()["server"])


async def _idle_percent(system: System, seconds: int) -> float:
    before = system.cpu_seconds()["server"]
    await asyncio.sleep(seconds)
    return (system.cpu_seconds()["server"] - before) * 100 / seconds
