"""``mcp-celery dev``: all that a server with background tasks needs, on one machine, with nothing installed before."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click

from mcp_celery.cli.body import Body
from mcp_celery.cli.dev.inspection import Inspected, inspect_server
from mcp_celery.cli.dev.stack import Stack, StopRequested, run_stack
from mcp_celery.cli.dev.summary import TaskLines, summary
from mcp_celery.cli.dev.supervisor import Supervisor
from mcp_celery.cli.errors import CodeError, RunError, StartError
from mcp_celery.cli.output import Terminal, typed
from mcp_celery.cli.sockets import bind
from mcp_celery.common.installed import package_conflicts
from mcp_celery.settings import unknown_variables

# Loaded when they are needed, because watchfiles is an extra.
_RELOADER: Final = Body("mcp_celery.cli.dev.reload:Reloader")
_AWAIT_USABLE_CODE: Final = Body("mcp_celery.cli.dev.reload:await_usable_code")


def dev(  # noqa: PLR0913, PLR0917 - one for each argument and option of the command
    server: str,
    host: str,
    port: int,
    allowed_hosts: Sequence[str],
    allowed_origins: Sequence[str],
    data_dir: Path | None,
    pool: str,
    concurrency: int | None,
    app_dir: Path | None,
    flower: bool,
    reload: bool,
    verbose: bool,
) -> None:
    """Run a server with all it needs, until a signal comes.

    Args:
        server: The user's server, as :func:`mcp_celery.server.loading.load_source` takes it.
        host: Address to listen on.
        port: Port to listen on; 0: a free one.
        allowed_hosts: Further names by which clients reach the server.
        allowed_origins: Further origins of web pages that may use it.
        data_dir: Folder of the private store; None: the one of the current folder.
        pool: One of `POOLS`.
        concurrency: Jobs at a time; None: the pool's default.
        app_dir: Folder in which the server's module is looked for first; None: the current one.
        flower: Whether to start Flower, too.
        reload: Whether to start worker and server anew when the user's code changes.
        verbose: Whether to show every line of every process.
    """
    for warning in (*unknown_variables(os.environ), *package_conflicts()):
        click.echo(f"Warning: {warning}", err=True)
    if flower and find_spec("flower") is None:
        raise StartError("--flower: Flower is not installed: `pip install 'mcp-celery-backend[flower]'`")
    if reload and find_spec("watchfiles") is None:
        raise StartError("--reload: watchfiles is not installed: `pip install 'mcp-celery-backend[reload]'`")
    app_dir = (app_dir or Path.cwd()).resolve()
    try:
        found = _inspected(server, app_dir, reload=reload)
    except StopRequested:
        click.echo("Stopped.")
        return
    stack = Stack.prepare(
        server,
        host=host,
        port=port,
        data_dir=data_dir,
        pool=pool,
        concurrency=concurrency,
        app_dir=app_dir,
        found=found,
    )
    stack = replace(stack, allowed_hosts=tuple(allowed_hosts), allowed_origins=tuple(allowed_origins))
    if flower and stack.has_worker:
        stack = replace(stack, flower=bind("127.0.0.1", 0))
    flower_url = None if stack.flower is None else f"http://127.0.0.1:{stack.flower.getsockname()[1]}"
    click.echo(stack.starting)
    terminal = Terminal()
    lines = TaskLines(terminal, click.echo, everything=verbose)

    async def announce_and_stay(redis_url: str) -> None:
        lines.ready("server")
        if stack.has_worker:
            await lines.worker_is_ready.wait()
        click.echo(
            summary(
                server=server,
                url=stack.url,
                tools=stack.tools,
                worker=_worker(stack),
                store=_store(stack),
                flower=_flower(flower_url) if stack.has_worker else "",
                program=typed("mcp-celery"),
                exports=export_line(stack.env(redis_url)) if stack.has_worker else "",
            )
        )
        await asyncio.Event().wait()

    try:
        run_stack(stack, lines, announce_and_stay, _reloading(stack, lines) if reload else None)
    except StopRequested:
        click.echo("Stopped.")
    except RunError as error:
        shown = "" if verbose else f"\n{lines.text}"
        raise RunError(f"{error.message}{shown}") from error


def _inspected(server: str, app_dir: Path, *, reload: bool) -> Inspected:
    """Inspect the server; with ``--reload``, wait until its code can be imported."""
    try:
        return inspect_server(server, app_dir)
    except CodeError as error:
        if not reload:
            raise
        error.show()
    await_usable_code: Callable[..., Inspected] = _AWAIT_USABLE_CODE.load()  # pyright: ignore[reportAssignmentType]
    return await_usable_code(server, app_dir, click.echo)


def _reloading(stack: Stack, lines: TaskLines) -> Callable[[Supervisor, str], Coroutine[Any, Any, None]]:
    reloader: Callable[..., Any] = _RELOADER.load()
    return reloader(stack, lines, click.echo).run


def _worker(stack: Stack) -> str:
    if not stack.has_jobs:
        return "none: nothing runs as a task; declare a tool with @server.tool(task=True)"
    if stack.in_process:
        return "none: the server runs its jobs itself (memory://)"
    if stack.concurrency is None:
        return f"{stack.pool} pool, 100 jobs at a time, up to 1,000 while they wait"
    return f"{stack.pool} pool, {stack.concurrency} job{'s' if stack.concurrency > 1 else ''} at a time"


def _store(stack: Stack) -> str:
    if stack.in_process:
        return "the server's memory: a restart loses every task"
    return f"private, in {stack.data_dir}" if stack.redis_url is None else "MCP_CELERY_REDIS_URL"


def _flower(url: str | None) -> str:
    if url is not None:
        return url
    return "not started: --flower starts it" if find_spec("flower") is not None else ""


def export_line(env: Mapping[str, str]) -> str:
    """The line after which the commands of operators, in another terminal, find these tasks.

    Args:
        env: Variables that the app's settings come from.
    """
    return " ".join(["export", *(f"{name}={shlex.quote(value)}" for name, value in env.items())])
