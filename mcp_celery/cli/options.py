"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

POOLS: Final[Mapping[str, tuple[str, ...]]] = {
    "asyncio": (),
    "prefork": ("--pool", "processes"),
    "threads": ("--pool", "threads"),
    "solo": ("--pool", "solo"),
}
"""What selects a pool on Celery's command line. The asyncio pool is our app's default, chosen by saying nothing.
Celery cannot tell `-P prefork`, its own default, from nothing; `processes` is another name of that pool."""
MOST_DEFAULT_PROCESSES: Final = 4
"""A development machine has more to do than to hold a worker process a core."""

server_argument = click.argument("server", metavar="MODULE:ATTR")
host_option = click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
port_option = click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0: a free one."
)
data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the private store. Default: one for the current folder, below the user's state folder.",
)
pool_option = click.option(
    "--pool", type=click.Choice(list(POOLS)), default="asyncio", show_default=True, help="How the worker runs jobs."
)
concurrency_option = click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Jobs that the worker runs at a time. Default: 100 on the asyncio pool, and up to 1,000 while they only wait; "
    f"else the number of processors, at most {MOST_DEFAULT_PROCESSES}.",
)


def default_concurrency(pool: str) -> int | None:
    """How many jobs a development worker runs at a time; None: as the app's configuration says."""
    return None if pool == "asyncio" else min(MOST_DEFAULT_PROCESSES, os.cpu_count() or 1)
