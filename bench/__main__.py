"""``python -m bench``: starts the systems, measures them in turns, and shows a table or writes the page."""

from __future__ import annotations

import asyncio
import os
import resource
import shlex
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from bench import page, peer, rabbitmq
from bench.figures import Measured, note
from bench.launcher import POOLS, Launcher
from bench.measures import MEASURES
from bench.processes import raise_on_sigterm
from bench.report import show
from bench.run import Findings, NotMeasuredError, Options, Run

OPEN_FILES: Final = 10_000
"""Two thousand connections, in this process and in a server, and what else is open."""


@click.command()
@click.option("--quick", is_flag=True, help="Few samples: shows that everything works; the figures are rough.")
@click.option("--only", type=click.Choice(list(MEASURES)), multiple=True, help="Measure this alone; may be repeated.")
@click.option("--no-fastmcp", "without_peer", is_flag=True, help="Leave FastMCP 4 out.")
@click.option("--pool", type=click.Choice(list(POOLS)), default="asyncio", show_default=True, help="Our worker's pool.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Our worker's jobs at a time. Default: the pool's own.")
@click.option("--rounds", type=click.IntRange(min=1), help="Turns of the systems. Default: 9, with --quick 3.")
@click.option("--amqp", default=rabbitmq.URL, show_default=True, help="The RabbitMQ that is measured as a broker.")
@click.option(
    "--write",
    "writes",
    is_flag=True,
    help="Write what is measured into bench/figures.json, docs/performance.md and its plot. Figures of measures that "
    "this run leaves out stay.",
)
def main(
    *,
    quick: bool,
    only: tuple[str, ...],
    without_peer: bool,
    pool: str,
    concurrency: int | None,
    rounds: int | None,
    amqp: str,
    writes: bool,
) -> None:
    """Measure mcp_celery against a bare MCP server and against FastMCP 4, all on this machine."""
    raise_on_sigterm()
    console = Console(width=None if sys.stdout.isatty() else 150)
    if not without_peer:
        try:
            peer.ensure()
        except peer.PeerMissingError as error:
            console.print(f"FastMCP 4 is left out, because it cannot be installed: {error}", markup=False)
            without_peer = True
    options = Options(
        quick=quick,
        rounds=rounds or (3 if quick else 9),
        pool=pool,
        concurrency=concurrency,
        peer=not without_peer,
        amqp=amqp,
    )
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    _allow_connections()
    asyncio.run(_measure(options, list(only) or list(MEASURES), console, command, writes=writes))


async def _measure(options: Options, names: list[str], console: Console, command: str, *, writes: bool) -> None:
    """Take measures one after the other, show what they found, and write each as soon as it is there."""
    taken: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory(prefix="mcp-bench-") as folder, ExitStack() as stack:
        launcher = Launcher(Path(folder), options.pool, options.concurrency, options.amqp)
        environment = page.environment(options, await asyncio.to_thread(launcher.store_version)) if writes else {}
        progress = _Progress(console)
        run = Run(options, launcher, stack, progress)
        for index, name in enumerate(names):
            progress.begin(f"{name} ({index + 1} of {len(names)})")
            try:
                taken[name] = await MEASURES[name](run)
            except NotMeasuredError as reason:
                console.print(f"{name} is not measured: {reason}", markup=False)
                continue
            except Exception:  # noqa: BLE001 - whatever one measure meets, the others are still worth having
                console.print_exception()
                _show_logs(Path(folder), console)
                continue
            seconds = progress.end()
            if writes:
                measured = Measured(
                    command=command,
                    date=datetime.now(UTC).date().isoformat(),
                    rounds=options.rounds,
                    quick=options.quick,
                    seconds=seconds,
                    load=os.getloadavg()[0],
                    environment=environment,
                    rows=taken[name].rows,
                    remarks=taken[name].remarks,
                )
                page.write(note(name, measured, MEASURES))
    show(console, taken, command)


class _Progress:
    """Shows which measure runs, what it does, and for how long it has run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._name = ""
        self._began = 0.0

    def begin(self, name: str) -> None:
        self._name, self._began = name, time.monotonic()

    def __call__(self, text: str) -> None:
        self._console.print(f"{self._name}, {time.monotonic() - self._began:.0f} s: {text}", highlight=False)

    def end(self) -> float:
        """Report the end; returns the seconds."""
        self("measured")
        return time.monotonic() - self._began


def _allow_connections() -> None:
    """Raise the limit on open files, for this process and those that it starts."""
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(most, OPEN_FILES)
    if least != resource.RLIM_INFINITY and least < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _show_logs(folder: Path, console: Console) -> None:
    for log in sorted(folder.glob("*/*.log")):
        console.print(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}", markup=False)


if __name__ == "__main__":
    main()
