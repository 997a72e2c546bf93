"""Results of 1 KB, 64 KB and 1 MB: a get that carries one, against a floor call that returns as much."""

from __future__ import annotations

from collections import defaultdict

from bench.client import Client
from bench.measures.latency import Taken, get_call, row
from bench.run import Findings, Run

SIZES = {"1 KB": 1024, "64 KB": 64 * 1024, "1 MB": 1024 * 1024}


async def payloads(run: Run) -> Findings:
    """Get p50 of completed tasks with large results."""
    count = run.options.size(40, 10)
    systems = await run.systems(run.all_systems)
    taken: dict[str, Taken] = {name: defaultdict(list) for name in SIZES}
    for _ in run.rounds():
        for name, size in SIZES.items():
            for system in systems:
                async with Client(system.url) as client:
                    ask = _blobs if system.store is None else _gets
                    taken[name][system.name].append(await ask(client, size, count))
    return Findings(
        [row(f"get a result of {name}, p50", found, 50) for name, found in taken.items()],
        ["Large results: the floor is a foreground call that returns as much."],
    )


async def _blobs(client: Client, size: int, count: int) -> list[float]:
    taken: list[float] = []
    for _ in range(count):
        answer = await client.call("blob", size=size)
        assert len(answer.result["content"][0]["text"]) == size
        taken.append(answer.seconds)
    return taken


async def _gets(client: Client, size: int, count: int) -> list[float]:
    task_id, _ = await client.submit("blob", size=size)
    task = await client.finish(task_id, 0.02)
    assert len(task["result"]["content"][0]["text"]) == size
    return [await get_call(client, task_id) for _ in range(count)]
