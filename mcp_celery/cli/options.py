"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

POOLS: Final = {"prefork": "processes", "threads": "threads", "solo": "solo"}
"""Our names of the pools, and Celery's. Celery cannot tell `-P prefork` from no `-P` at all, because it is its default,
and then takes the pool that the app's configuration names; `processes` is its other name of the same pool."""
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
    "--pool", type=click.Choice(list(POOLS)), default="prefork", show_default=True, help="How the worker runs jobs."
)
concurrency_option = click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=min(MOST_DEFAULT_PROCESSES, os.cpu_count() or 1),
    help=f"Jobs that the worker runs at a time. Default: the number of processors, at most {MOST_DEFAULT_PROCESSES}.",
)
