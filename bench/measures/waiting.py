"""Tasks that wait: jobs that sleep in a worker of a thousand slots, and as many that wait in the queue behind them."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from bench.load import submitted, until_idle
from bench.queues import celery_of, stop_consuming
from bench.run import Findings, Row, Run
from bench.systems import OURS, WIDE, System

KIB: Final = 1024
LONG_SECONDS: Final = 3600.0
ROLES: Final = ("server", "worker", "store")


async def waiting(run: Run) -> Findings:
    """Memory of each process a task, after as many tasks that warm it up."""
    count = run.options.size(500, 100)
    async with run.own(WIDE) as (system,):
        sizes: list[dict[str, int]] = []
        for what in ("warm the worker up", "run", "wait in the queue"):
            if what == "wait in the queue":
                with celery_of(system) as app:
                    await stop_consuming(app, system)
            run.report(f"{count} jobs that {what}")
            await submitted(system, count, "sleep", seconds=LONG_SECONDS)
            await until_idle(system)
            sizes.append(_sizes(system))
    running, queued = (
        {role: (late[role] - early[role]) / count / KIB for role in ROLES} for early, late in pairwise(sizes)
    )
    return Findings(
        [
            Row("worker: memory of a job that waits in the tool", "KiB", {OURS: running["worker"]}, sizing=True),
            Row("store: memory of the task of such a job", "KiB", {OURS: running["store"]}, sizing=True),
            Row("store: memory of a task that waits in the queue", "KiB", {OURS: queued["store"]}, sizing=True),
        ],
        [
            (
                f"{count} jobs that sleep in a worker of 1,000 slots, and {count} behind them. Processes: memory that "
                "they share with no other one (USS); the store: `used_memory`. The server grew by "
                f"{running['server']:.1f} KiB a task."
            )
        ],
    )


def _sizes(system: System) -> dict[str, int]:
    own = system.own_bytes()
    return {"server": sum(own["server"]), "worker": sum(own["worker"]), "store": system.used_memory()}
