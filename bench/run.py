"""One run: its options, its systems, and what a measure gives back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from bench.client import Client
from bench.launcher import Launcher
from bench.systems import FLOOR, OURS, PEER, System

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
        amqp: URL of the RabbitMQ that is measured as a broker.
    """

    quick: bool
    rounds: int
    pool: str
    concurrency: int | None
    peer: bool
    amqp: str

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
        sizing: Whether it belongs to the table by which a deployment is sized.
    """

    what: str
    unit: str
    values: Mapping[str, float]
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    figure_unit: str = "×"
    better: Better | None = None
    note: str = ""
    sizing: bool = False


@dataclass(slots=True)
class Findings:
    """What a measure found: lines of the table, and remarks below it."""

    rows: list[Row] = field(default_factory=list[Row])
    remarks: list[str] = field(default_factory=list[str])


class NotMeasuredError(Exception):
    """A measure lacks what it needs; the message says what."""


class Run:
    """The systems of a run, started when a measure first asks for them.

    Args:
        options: The command line.
        launcher: Starts systems.
        stack: Ends them.
        report: Shows how far a measure is.
    """

    def __init__(self, options: Options, launcher: Launcher, stack: ExitStack, report: Callable[[str], None]) -> None:
        self.options = options
        self.report = report
        self._launcher = launcher
        self._stack = stack
        self._systems: dict[str, System] = {}

    def rounds(self, most: int | None = None) -> Iterator[int]:
        """Count the rounds of a measure, and report each.

        Args:
            most: The most that there are, however many the command line asks for; None for any number.
        """
        count = min(self.options.rounds, most or self.options.rounds)
        for index in range(count):
            self.report(f"round {index + 1} of {count}")
            yield index

    async def system(self, name: str) -> System:
        """A system by its column's name, warmed up."""
        if name not in self._systems:
            self._systems[name] = await self._start(name, self._stack)
        return self._systems[name]

    @asynccontextmanager
    async def own(self, *names: str) -> AsyncGenerator[list[System]]:
        """Systems that one measure has to itself, warmed up. They end with the context."""
        stack = ExitStack()
        try:
            yield [await self._start(name, stack) for name in names]
        finally:
            await asyncio.to_thread(stack.close)

    async def _start(self, name: str, stack: ExitStack) -> System:
        self.report(f"starting {name}")
        started = await asyncio.to_thread(self._launcher.start, name, stack)
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
