"""Ten thousand stored tasks: does a get stay as fast as with none?"""

from __future__ import annotations

from collections import defaultdict

from bench.client import Client
from bench.load import completed
from bench.measures.latency import Taken, get_call, noop_call
from bench.run import Findings, Row, Run
from bench.stats import median, percentile
from bench.systems import FLOOR, OURS


async def stored(run: Run) -> Findings:
    """Get p50 before and after, each against the floor beside it."""
    count = run.options.size(10_000, 400)
    floor, ours = await run.system(FLOOR), await run.system(OURS)
    before = await _gets_beside(run, floor.url, ours.url)
    await completed(ours, count)
    after = await _gets_beside(run, floor.url, ours.url)
    values = {f"{OURS}": after[0]}
    return Findings(
        [Row(f"get with {count} stored tasks, p50", "ms", values, {OURS: after[1]})],
        [f"With {count} more stored tasks a get takes {after[1]:.2f} × the floor; before, {before[1]:.2f} ×."],
    )


async def _gets_beside(run: Run, floor_url: str, ours_url: str) -> tuple[float, float]:
    """Get p50 in milliseconds, and its ratio to the floor."""
    count = run.options.size(100, 40)
    taken: Taken = defaultdict(list)
    async with Client(floor_url) as floor, Client(ours_url) as ours:
        task_id, _ = await ours.submit("noop")
        await ours.finish(task_id, 0.01)
        for _ in run.rounds():
            taken[FLOOR].append([await noop_call(floor) for _ in range(count)])
            taken[OURS].append([await get_call(ours, task_id) for _ in range(count)])
    middles = {name: [percentile(one, 50) for one in found] for name, found in taken.items()}
    ratios = [one / other for one, other in zip(middles[OURS], middles[FLOOR], strict=True)]
    return median(middles[OURS]) * 1000, median(ratios)
