"""``python -m bench``: starts the systems, measures them in turns, and shows a table or writes the page."""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console

from bench import page, peer
from bench.measures import MEASURES
from bench.processes import raise_on_sigterm
from bench.report import show
from bench.run import Findings, Options, Run
from bench.systems import OURS, POOLS, Launcher


@click.command()
@click.option("--quick", is_flag=True, help="Few samples: shows that everything works; the figures are rough.")
@click.option("--only", type=click.Choice(list(MEASURES)), multiple=True, help="Measure this alone; may be repeated.")
@click.option("--no-fastmcp", "without_peer", is_flag=True, help="Leave FastMCP 4 out.")
@click.option("--pool", type=click.Choice(list(POOLS)), default="asyncio", show_default=True, help="Our worker's pool.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Our worker's jobs at a time. Default: the pool's own.")
@click.option("--rounds", type=click.IntRange(min=1), help="Turns of the systems. Default: 9, with --quick 3.")
@click.option("--write", "writes", is_flag=True, help="Write docs/performance.md and docs/img/performance.svg.")
def main(
    *,
    quick: bool,
    only: tuple[str, ...],
    without_peer: bool,
    pool: str,
    concurrency: int | None,
    rounds: int | None,
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
    )
    findings, store = asyncio.run(_measure(options, list(only) or list(MEASURES), console))
    command = shlex.join(["python", "-m", "bench", *sys.argv[1:]])
    show(console, findings, command)
    if writes:
        page.write(findings, options, command, store)


async def _measure(options: Options, names: list[str], console: Console) -> tuple[Findings, str]:
    """What was found, and which store it was found on."""
    findings = Findings()
    with tempfile.TemporaryDirectory(prefix="mcp-bench-") as folder, ExitStack() as stack:
        run = Run(options, Launcher(Path(folder), stack, options.pool, options.concurrency))
        for name in names:
            console.print(f"measuring {name} …", highlight=False)
            try:
                found = await MEASURES[name](run)
            except Exception as error:  # noqa: BLE001 - whatever one measure meets, the others are still worth having
                console.print_exception()
                _show_logs(Path(folder), console)
                found = Findings(remarks=[f"{name} could not be measured: {type(error).__name__}"])
            findings.rows += found.rows
            findings.remarks += found.remarks
        with (await run.system(OURS)).redis() as store:
            return findings, page.store_version(store.info("server"))


def _show_logs(folder: Path, console: Console) -> None:
    for log in sorted(folder.glob("*/*.log")):
        console.print(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}", markup=False)


if __name__ == "__main__":
    main()
