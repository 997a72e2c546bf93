"""Twenty thousand tasks: how much each process grows, and what a finished task takes in the store."""

from __future__ import annotations

from typing import Final

from bench.load import completed
from bench.run import Findings, Row, Run
from bench.systems import System

MIB: Final = 1024 * 1024
WAVES: Final = 10


async def growth(run: Run) -> Findings:
    """Memory after a first wave of tasks, against that after ten more."""
    wave = run.options.size(2_000, 200)
    grown: dict[str, dict[str, float]] = {"server": {}, "worker": {}}
    stored: dict[str, float] = {}
    remarks: list[str] = []
    async with run.own(*run.task_systems) as systems:
        for system in systems:
            await completed(system, wave)
            before, used = _mib(system), system.used_memory()
            for index in range(WAVES):
                await completed(system, wave)
                run.report(f"{system.name}: {(index + 2) * wave} tasks")
            after = _mib(system)
            stored[system.name] = (system.used_memory() - used) / (WAVES * wave) / 1024
            for role, of in grown.items():
                of[system.name] = max(late - early for early, late in zip(before[role], after[role], strict=True))
            remarks.append(
                f"{system.name}: "
                + ", ".join(
                    f"{role} {_sizes(before[role])} before and {_sizes(after[role])} after {WAVES * wave} tasks"
                    for role in ("server", "worker")
                )
            )
    return Findings(
        [
            *(Row(f"growth of the {role} over {WAVES * wave} tasks", "MiB", of) for role, of in grown.items()),
            Row("store: memory of a finished no-op task", "KiB", stored, sizing=True),
        ],
        [
            f"Memory in MiB that each process shares with no other one (USS), after {wave} tasks to warm up: "
            + "; ".join(remarks)
            + ". Of several processes of a role, the one that grew most is shown."
        ],
    )


def _mib(system: System) -> dict[str, list[float]]:
    return {role: [one / MIB for one in found] for role, found in system.own_bytes().items()}


def _sizes(found: list[float]) -> str:
    return " + ".join(f"{one:.1f}" for one in found)
