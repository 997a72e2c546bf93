"""``--workers``: several server processes on one socket, and what watches over them."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Container, Mapping, Sequence
from typing import Any, Final

import click

from mcp_celery.cli.dev.supervisor import ChildSpec, StopSignals, Supervisor
from mcp_celery.cli.errors import RunError
from mcp_celery.cli.sockets import ANSWERS
from mcp_celery.engine.retry import pauses

logger = logging.getLogger("uvicorn.error")
FAILED_START_SECONDS: Final = 5.0
"""A process that ends so soon after the first start, and has not said that it answers, cannot start."""
LONGEST_PAUSE_SECONDS: Final = 5.0
"""Longest pause before a process that has ended is started again."""


def same_command(context: click.Context, **changes: Any) -> list[str]:
    """The command line that runs a command once more, in a process of its own.

    Args:
        context: Of the command that runs.
        **changes: Values of parameters that are to be different; None leaves an option out.
    """
    options: list[str] = []
    arguments: list[str] = []
    for parameter in context.command.params:
        value = {**context.params, **changes}.get(parameter.name or "")
        if isinstance(parameter, click.Argument):
            arguments.append(str(value))
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            options += [parameter.opts[0]] if value else []
        elif value is not None:
            for one in value if parameter.multiple else [value]:
                options += [parameter.opts[0], str(one)]
    return [sys.executable, "-m", "mcp_celery", context.command.name or "", *options, "--", *arguments]


def run_processes(
    argv: Sequence[str], number: int, sockets: Sequence[socket.socket], *, grace_seconds: float = 0.0
) -> None:
    """Run server processes until a signal comes. A process that ends before is started again.

    Args:
        argv: The command of each.
        number: How many.
        sockets: Those whose descriptors are in the command.
        grace_seconds: How long a process may go on to serve after it was asked to end.

    Raises:
        RunError: A process could not start.
    """
    asyncio.run(_run(argv, number, [one.fileno() for one in sockets], grace_seconds))


async def _run(argv: Sequence[str], number: int, descriptors: Sequence[int], grace_seconds: float) -> None:
    answering: set[str] = set()

    def on_line(name: str, line: str) -> None:
        if ANSWERS in line:
            answering.add(name)
        _pass_on(line)

    with StopSignals() as signals:
        async with Supervisor(on_line, grace_seconds=grace_seconds) as supervisor:
            signals.on_repeat = supervisor.hurry
            specs = {
                name: ChildSpec(name=name, argv=argv, env={"PYTHONUNBUFFERED": "1"}, pass_fds=tuple(descriptors))
                for name in (f"server process {one}" for one in range(1, number + 1))
            }
            running = asyncio.ensure_future(_keep_running(supervisor, specs, answering))
            stopped = asyncio.ensure_future(signals.wait())
            try:
                await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    running.result()
            finally:
                running.cancel()
                stopped.cancel()
                await asyncio.gather(running, stopped, return_exceptions=True)


async def _keep_running(supervisor: Supervisor, specs: Mapping[str, ChildSpec], answering: Container[str]) -> None:
    now = asyncio.get_running_loop().time
    for spec in specs.values():
        await supervisor.start(spec)
    first_start, waits, ended_at = now(), pauses(LONGEST_PAUSE_SECONDS), now()
    while True:
        ended = await supervisor.first_exit()
        if ended.name not in answering and now() - first_start < FAILED_START_SECONDS:
            raise RunError(f"{ended}; the others were stopped")
        if now() - ended_at > 2 * LONGEST_PAUSE_SECONDS:
            waits = pauses(LONGEST_PAUSE_SECONDS)
        ended_at = now()
        logger.warning("%s; it is started again", ended)
        await asyncio.sleep(next(waits))
        await supervisor.start(specs[ended.name])


def _pass_on(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        return
