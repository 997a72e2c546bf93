"""Memory of server, worker and store after the measures before it."""

from __future__ import annotations

from bench.run import Findings, Row, Run

_MIB = 1024 * 1024


async def memory(run: Run) -> Findings:
    """Proportional set size: what the processes share is counted once."""
    shared: dict[str, float] = {}
    remarks: list[str] = []
    for system in await run.systems(run.all_systems):
        used = system.memory_bytes()
        shared[system.name] = sum(pss for pss, _ in used.values()) / _MIB
        roles = ", ".join(f"{role} {pss / _MIB:.0f} ({rss / _MIB:.0f})" for role, (pss, rss) in used.items())
        remarks.append(f"{system.name}: {roles}")
    return Findings(
        [Row("memory, all processes", "MiB", shared, note="PSS")],
        [f"Memory in MiB as PSS (RSS): {'; '.join(remarks)}."],
    )
