"""``mcp-celery workers``: which workers there are, and ``workers drain``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

from mcp_celery.cli.errors import RunError
from mcp_celery.cli.operate.running import cell, print_json, run, site_of, terminal
from mcp_celery.cli.remote.render import print_line
from mcp_celery.common.durations import span
from mcp_celery.operate.site import Open
from mcp_celery.operate.workers import DrainError, Worker, drained, workers_of

LEAST_CHARS: Final = 12
"""Only the names of workers are broken as long as their column is as wide as this; else those of queues, too."""
_HEADS: Final = ("worker", "state", "pool", "slots", "queues", "oldest job", "last seen")
_RIGHT: Final = frozenset({"slots", "oldest", "last"})
"""The first words of the heads of columns of numbers and times."""


def workers(server: str | None, namespace: str | None, components: bool, machine: bool, app: str | None) -> None:
    """List the workers.

    Args:
        server: The server, as it is named.
        namespace: The server's namespace.
        components: Whether to list the components of each, with their versions.
        machine: Whether to print JSON.
        app: The Celery app, as it is named.
    """
    site = site_of(app, server, namespace)

    async def body(servers: list[Open]) -> None:
        found = await workers_of(site, servers)
        if machine:
            for worker in found:
                print_json(_told(worker))
        else:
            print_workers(terminal(), found, components=components, store=site.store_name)

    run(site, body)


def _told(worker: Worker) -> dict[str, Any]:
    celery = worker.celery
    return {
        "worker": worker.node,
        "host": worker.host,
        "state": worker.state,
        "servers": list(worker.servers),
        "pool": None if celery is None else celery.pool,
        "slots": None if celery is None else celery.slots,
        "active": None if celery is None else celery.active,
        "claims": worker.claims,
        "queues": None if celery is None else list(celery.queues),
        "components": [{"component": name, "version": version} for name, version in worker.components],
        "oldestJobMs": worker.oldest_ms,
        "lastHeartbeatMs": worker.heartbeat_ms,
    }


def _row(worker: Worker, *, separator: str) -> tuple[str, ...]:
    celery = worker.celery
    used = "?" if celery is None or celery.active is None else celery.active
    slots = "?" if celery is None or celery.slots is None else celery.slots
    queues = ["?"] if celery is None else celery.queues or ["none"]
    return (
        cell(worker.node),
        worker.state,
        cell("?" if celery is None or celery.pool is None else celery.pool),
        f"{used}/{slots}",
        separator.join(map(cell, queues)),
        "-" if worker.oldest_ms is None else span(worker.oldest_ms),
        "never" if worker.heartbeat_ms is None else span(worker.heartbeat_ms),
    )


def _folded(heads: Sequence[str], rows: Sequence[Sequence[str]], columns: int) -> set[str]:
    """The heads of the columns in which names are broken, for want of room. Names are typed again: none is cut off."""
    missing = _width(heads, rows) - columns
    if missing <= 0:
        return set()
    names = _longest([row[heads.index("worker")] for row in rows])
    return {"worker"} if names - missing >= LEAST_CHARS else {"worker", "queues"}


def _width(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """The width of a table in which no line of a cell is broken, with a border and two spaces for each cell."""
    return 1 + sum(3 + _longest(column) for column in zip(heads, *rows, strict=True))


def _longest(texts: Sequence[str]) -> int:
    return max(len(line) for text in texts for line in text.split("\n"))


def print_workers(console: Console, found: Sequence[Worker], *, components: bool, store: str) -> None:
    """Print workers as a table.

    Args:
        console: Where to print it.
        found: The workers.
        components: Whether to list the components of each, with their versions.
        store: The store that was read, in words.
    """
    if not found:
        print_line(console, f"No workers: no worker sends heartbeats to {store}, and none that answers has its queues.")
        return
    heads = _HEADS
    rows = [_row(worker, separator=", ") for worker in found]
    if _width(heads, rows) > console.width:
        heads = tuple(head.replace(" ", "\n") for head in _HEADS)
        rows = [_row(worker, separator=",\n") for worker in found]
    folded = _folded(heads, rows, console.width)
    table = Table()
    for head in heads:
        justify = "right" if head.split()[0] in _RIGHT else "left"
        table.add_column(head, overflow="fold", justify=justify, no_wrap=head not in folded)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for worker in found if components else ():
        print_line(console, f"{cell(worker.node)}:")
        for name, version in worker.components:
            print_line(console, f"  {cell(version)}  {cell(name)}")


def drain(server: str | None, namespace: str | None, worker: str, timeout: float | None, app: str | None) -> None:
    """Have a worker finish what it has, and end.

    Args:
        server: The server, as it is named.
        namespace: The server's namespace.
        worker: The worker's node name.
        timeout: How long its jobs may last, in seconds; None: for ever.
        app: The Celery app, as it is named.
    """
    site = site_of(app, server, namespace)

    def asked() -> None:
        click.echo(f"Asked worker {worker} to take no more jobs; waiting for those that it has.", err=True)

    try:
        had = drained(site.app, worker, timeout_seconds=timeout, asked=asked)
    except DrainError as error:
        raise RunError(str(error)) from error
    click.echo(f"Worker {worker} has finished {had} {'job' if had == 1 else 'jobs'} and ends.")
