"""``python -m tests.soak --minutes 20``: kill everything at random under load, then hold what happened to account."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Final, get_args

from tests.soak import audit
from tests.soak.chaos import Chaos
from tests.soak.load import TOOLS, Load
from tests.soak.notes import Notes
from tests.soak.plant import Plant
from tests.soak.stores import StoreKind
from tests.support.nodes import short_folder

PAGE: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
SETTLING_SECONDS: Final = 120.0
"""How long after the last kill a task may be open: a death is noticed in 20 s, and a job may die twice."""


async def soak(kind: StoreKind, minutes: float, clients: int, seed: int, logs: Path | None) -> tuple[str, list[str]]:
    """Run it with a kind of store, and keep the logs where ``logs`` says.

    Returns:
        The report as Markdown, and the broken promises.
    """
    with short_folder() as folder:
        plant = Plant(folder, kind)
        try:
            tools = {tool: weight for tool, weight in TOOLS.items() if tool != "theirs" or plant.their_workers}
            load = Load([server.url for server in plant.servers], clients, seed, tools)
            calm, end = asyncio.Event(), asyncio.Event()
            chaos = asyncio.create_task(Chaos(plant, random.Random(seed)).run(calm))
            loading = asyncio.create_task(load.run(end))
            began = time.monotonic()
            while (passed := time.monotonic() - began) < minutes * 60:
                await asyncio.wait([chaos, loading], timeout=min(30.0, minutes * 60 - passed))
                for task in (chaos, loading):
                    if task.done():
                        task.result()
                say(f"{passed / 60:4.1f} min: {len(load.calls)} calls, {sum(plant.deeds.values())} deeds")
            calm.set()
            await chaos
            calm_at = time.time()
            end.set()
            await asyncio.wait([loading], timeout=SETTLING_SECONDS)
            if loading.done():
                loading.result()
            loading.cancel()
            of_calls = list(audit.findings(load.calls, Notes(plant.notes), plant))
            of_store = await asyncio.to_thread(lambda: list(audit.of_store(plant.store)))
            broken = [*plant.unasked, *of_calls, *of_store]
            return report(minutes, seed, plant, load, calm_at, broken), broken
        finally:
            await asyncio.to_thread(plant.close)
            if logs is not None:
                for log in (*folder.glob("*.log"), plant.notes):
                    await asyncio.to_thread(shutil.copy, log, logs)


def report(minutes: float, seed: int, plant: Plant, load: Load, calm_at: float, broken: list[str]) -> str:
    """What happened, as Markdown."""
    deeds = "\n".join(f"| {deed} | {count} |" for deed, count in sorted(plant.deeds.items()))
    ends = "\n".join(f"| {end} | {count} |" for end, count in audit.outcomes(load.calls).most_common())
    verdict = "No promise was broken." if not broken else "\n".join(f"- {one}" for one in broken)
    return f"""{time.strftime("%Y-%m-%d")}, {minutes:g} minutes, seed {seed}, {load.clients} clients, Python \
{platform.python_version()}, {os.cpu_count()} processors with a load of {os.getloadavg()[1]:.0f}. \
Requests that were not answered, since their server had died: {load.unanswered}.
{audit.of_purged(load.calls, plant.purged)} {audit.of_the_last(load.calls, calm_at)}

| what was done | times |
|---|---|
{deeds}

| how the {len(load.calls)} calls ended | times |
|---|---|
{ends}

**Audit**: {verdict}
"""


def say(line: str) -> None:
    """Print at once."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a command


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument(
        "--store", choices=get_args(StoreKind), default="single", help="what keeps the tasks; its masters are killed"
    )
    parser.add_argument("--minutes", type=float, default=20)
    # Many more than that, and the audit finds tasks open that only wait for their turn.
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--write", action="store_true", help=f"put the audit in {PAGE.name}")
    parser.add_argument("--logs", type=Path, help="an existing folder for the logs")
    options = parser.parse_args()
    text, broken = asyncio.run(soak(options.store, options.minutes, options.clients, options.seed, options.logs))
    print(text)  # noqa: T201
    if options.write:
        mark = "soak" if options.store == "single" else f"soak-{options.store}"
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
        PAGE.write_text(re.sub(pattern, lambda m: f"{m[1]}{text}{m[2]}", PAGE.read_text(), flags=re.S))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
