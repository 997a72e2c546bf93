"""What a setting costs: CPU a task of the same system with and without it, in turns."""

from __future__ import annotations

from collections import defaultdict

from bench.measures.throughput import cpu_of
from bench.run import Findings, Row, Run
from bench.stats import median, ratio
from bench.systems import MEASURED, OURS, SEALED

PAIRS = 4
"""How many pairs of systems are compared: two of the same kind differ by some percent for as long as they run."""


async def keys(run: Run) -> Findings:
    """CPU seconds a task with ``MCP_CELERY_ENCRYPTION_KEYS`` against without."""
    return await _cost_of(run, SEALED, "encryption keys")


async def telemetry(run: Run) -> Findings:
    """CPU seconds a task with ``MCP_CELERY_TELEMETRY=prometheus`` against without."""
    return await _cost_of(run, MEASURED, "metrics")


async def _cost_of(run: Run, other: str, what: str) -> Findings:
    """CPU seconds a task of a system against ours; each round in another order."""
    each = run.options.size(15, 12)
    spent: dict[str, list[float]] = defaultdict(list)
    roles: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(run.options.size(PAIRS, 1)):
        async with run.own(OURS, other) as pair:
            for turn in run.rounds():
                for system in pair[:: 1 if turn % 2 else -1]:
                    found = await cpu_of(system, each)
                    for role, seconds in found.items():
                        roles[role][system.name].append(seconds * 1000)
                    spent[system.name].append(sum(found.values()) * 1000)
    shares = [f"{role} {median(of[OURS]):.2f} and {median(of[other]):.2f}" for role, of in roles.items()]
    without, with_it = median(spent[OURS]), median(spent[other])
    return Findings(
        [
            Row(
                f"CPU a task with {what}",
                "ms",
                {OURS: with_it},
                {OURS: ratio(spent[other], spent[OURS])},
                better="less",
                note="× without",
            )
        ],
        [
            (
                f"CPU in ms a task (submit, run, one get) without {what} and with them: {without:.2f} and "
                f"{with_it:.2f}; {', '.join(shares)}."
            )
        ],
    )
