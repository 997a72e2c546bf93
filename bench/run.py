"""One run: its options, its systems, and what a measure gives back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from bench.client import Client
from bench.systems import FLOOR, OURS, PEER, Launcher, System

WARM_UP_CALLS = 40

Better = Literal["less", "more"]
"""Which figure is better."""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked on the command line.

    Attributes:
        quick: Few samples, to see that everything works; the figures are rough.
        rounds: How often the systems take turns.
        pool: Pool of our worker.
        concurrency: Jobs at a time in our worker, None for its default.
        peer: Whether FastMCP 4 is measured.
    """

    quick: bool
    rounds: int
    pool: str
    concurrency: int | None
    peer: bool

    def size(self, full: int, quick: int) -> int:
        """A number of samples."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        unit: Unit of ``values``.
        values: By system.
        figures: By system, what is compared; for example ratios to the floor.
        figure_unit: Unit of ``figures``: ``×`` for ratios.
        better: Whether less or more of the figure is better; None: the plot leaves it out.
        note: What else must be known to read it.
    """

    what: str
    unit: str
    values: Mapping[str, float]
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    figure_unit: str = "×"
    better: Better | None = None
    note: str = ""


@dataclass(slots=True)
class Findings:
    """What a measure found: lines of the table, and remarks below it."""

    rows: list[Row] = field(default_factory=list[Row])
    remarks: list[str] = field(default_factory=list[str])


class Run:
    """The systems of a run, started when a measure first asks for them.

    Args:
        options: The command line.
        launcher: Starts systems.
    """

    def __init__(self, options: Options, launcher: Launcher) -> None:
        self.options = options
        self._launcher = launcher
        self._systems: dict[str, System] = {}

    async def system(self, name: str) -> System:
        """A system by its column's name, warmed up."""
        if name not in self._systems:
            self._systems[name] = await self.another(name)
        return self._systems[name]

    async def another(self, name: str) -> System:
        """One more system of that kind, warmed up."""
        started = await asyncio.to_thread(self._launcher.start, name)
        await _warm_up(started)
        return started

    async def systems(self, names: Sequence[str]) -> list[System]:
        """Several systems."""
        return [await self.system(name) for name in names]

    @property
    def task_systems(self) -> list[str]:
        """The columns that have tasks."""
        return [OURS, PEER] if self.options.peer else [OURS]

    @property
    def all_systems(self) -> list[str]:
        """Every column."""
        return [FLOOR, *self.task_systems]


async def _warm_up(system: System) -> None:
    if not system.url:  # a worker alone
        return
    async with Client(system.url) as client:
        for _ in range(WARM_UP_CALLS):
            if system.store is None:
                await client.call("noop")
            else:
                task_id, _ = await client.submit("noop")
                await client.finish(task_id, 0.01)


@asynccontextmanager
async def connected(url: str, count: int) -> AsyncGenerator[list[Client]]:
    """That many connections to a server."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Client(url)) for _ in range(count)]
