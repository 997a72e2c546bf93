"""``mcp-celery dev``: all that a server with background tasks needs, on one machine, with nothing installed before."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from mcp_celery.cli.output import Terminal, typed
from mcp_celery.cli.stack import Stack, StopRequested, run_stack

FLOWER_CONFIGURATION: Final = Path("config/flowerconfig.py")
"""Where a checkout of the project has it, and where its users copy it."""


def dev(
    server: str,
    host: str,
    port: int,
    allowed_hosts: Sequence[str],
    allowed_origins: Sequence[str],
    data_dir: Path | None,
    pool: str,
    concurrency: int | None,
) -> None:
    """Run a server with all it needs, until a signal comes.

    Args:
        server: The user's server as ``module:attribute``.
        host: Address to listen on.
        port: Port to listen on; 0: a free one.
        allowed_hosts: Further names by which clients reach the server.
        allowed_origins: Further origins of web pages that may use it.
        data_dir: Folder of the private store; None: the one of the current folder.
        pool: One of `POOLS`.
        concurrency: Jobs at a time; None: the pool's default.
    """
    stack = Stack.prepare(server, host=host, port=port, data_dir=data_dir, pool=pool, concurrency=concurrency)
    stack = replace(stack, allowed_hosts=tuple(allowed_hosts), allowed_origins=tuple(allowed_origins))

    async def announce_and_stay(redis_url: str) -> None:
        click.echo(f"\n{server} answers at {stack.url} (Ctrl-C stops everything)")
        if stack.in_process:
            click.echo("It runs its jobs itself: memory:// needs neither a store nor a worker\n")
        else:
            click.echo(f"Watch its jobs in Flower:\n  {flower_command(stack.env(redis_url))}\n")
        await asyncio.Event().wait()

    try:
        run_stack(stack, Terminal(), announce_and_stay)
    except StopRequested:
        click.echo("Stopped.")


def flower_command(env: Mapping[str, str]) -> str:
    """The command that shows jobs in Flower, to be typed in another terminal.

    Args:
        env: Variables that the app's settings come from.
    """
    settings = [f"{name}={shlex.quote(value)}" for name, value in env.items()]
    # Flower itself would listen on every address.
    configuration = [f"--conf={FLOWER_CONFIGURATION}"] if FLOWER_CONFIGURATION.is_file() else []
    return " ".join([*settings, typed("celery"), "-A mcp_celery flower --address=127.0.0.1", *configuration])
