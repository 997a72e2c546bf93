"""What ``dev`` and ``demo`` start: a store, one Celery worker, one server; and how long all of it lives.

A server that keeps its tasks in memory is started alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final, Self, TypeVar

from redis.exceptions import RedisError

from mcp_celery.cli.errors import RunError, StartError, start_errors
from mcp_celery.cli.options import POOLS, default_concurrency
from mcp_celery.cli.serve import bind, reachable, url_of
from mcp_celery.cli.store import REDIS_URL, ask_store, leave_store_command, private_store, raise_when_gone
from mcp_celery.cli.supervisor import ChildSpec, StopSignals, Supervisor, unless_interrupted
from mcp_celery.embedded import default_data_dir
from mcp_celery.server import load_source, tasks_of
from mcp_celery.settings import ENV_PREFIX, MEMORY_URL, Settings

SERVER: Final = f"{ENV_PREFIX}SERVER"
PROMPT_OUTPUT: Final = {"PYTHONUNBUFFERED": "1"}
CONNECT_SECONDS: Final = 0.05
"""A port that is not listened on yet cannot be waited for, so it is tried this often."""

T = TypeVar("T")


class StopRequested(Exception):  # noqa: N818 - it is no error: the user asked for it
    """A signal asked to stop before the work was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One store, one worker and one server, checked as far as possible before anything is started.

    Args:
        server: The user's server as ``module:attribute``.
        queues: Celery queues that its components use.
        bound: The socket on which it will listen; closed here once the server has it.
        url: Where MCP clients connect.
        redis_url: Store to use; None: a private one.
        in_process: Whether the server keeps its tasks in its own process (``memory://``): then there is neither a store
            nor a worker.
        data_dir: Folder of the private store.
        pool: One of `POOLS`.
        concurrency: Jobs at a time; None: as the app's configuration says.
        allowed_hosts: Further names by which clients reach the server.
        allowed_origins: Further origins of web pages that may use it.
    """

    server: str
    queues: tuple[str, ...]
    bound: socket.socket
    url: str
    redis_url: str | None
    in_process: bool
    data_dir: Path
    pool: str
    concurrency: int | None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()

    @classmethod
    def prepare(
        cls, server: str, *, host: str, port: int, data_dir: Path | None, pool: str, concurrency: int | None = None
    ) -> Self:
        """Check everything that can be wrong with what the user asked for.

        Args:
            server: The user's server as ``module:attribute``.
            host: Address to listen on.
            port: Port to listen on; 0: a free one.
            data_dir: Folder of the private store; None: the one of the current folder.
            pool: One of `POOLS`.
            concurrency: Jobs at a time; None: the pool's default.

        Raises:
            StartError: A setting, the module, its attribute or the port is wrong.
        """
        with start_errors():
            Settings.load()
            tasks = tasks_of(load_source(server).server)
            queues = tasks.queue_names
        bound = bind(host, port)
        return cls(
            server=server,
            queues=queues,
            bound=bound,
            url=url_of(bound),
            redis_url=os.environ.get(REDIS_URL) or (MEMORY_URL if tasks.backend.in_process else None),
            in_process=tasks.backend.in_process,
            data_dir=data_dir or default_data_dir(),
            pool=pool,
            concurrency=concurrency or default_concurrency(pool),
        )

    def worker(self, redis_url: str) -> ChildSpec:
        """The Celery worker, started as anybody would start it."""
        command = [sys.executable, "-m", "celery", "-A", "mcp_celery", "worker"]
        options = {
            "--queues": ",".join(self.queues),
            "--hostname": f"dev-{os.getpid()}@%h",
            "--loglevel": "INFO",
        }
        if self.concurrency is not None:
            options["--concurrency"] = str(self.concurrency)
        return ChildSpec(
            name="worker",
            # A single worker has no neighbours: looking for some would cost it its first second.
            argv=[*command, *POOLS[self.pool], *_flat(options), "--without-gossip", "--without-mingle"],
            env={**self.env(redis_url), **PROMPT_OUTPUT},
            # Celery's cold shutdown: it takes running jobs down with it.
            urgent_signal=signal.SIGQUIT,
        )

    def server_process(self, redis_url: str) -> ChildSpec:
        """The MCP server, which inherits the socket that is bound already."""
        host, port = self.bound.getsockname()[:2]
        options = {"--host": host, "--port": str(port), "--fd": str(self.bound.fileno())}
        names = [("--allowed-host", one) for one in self.allowed_hosts]
        names += [("--allowed-origin", one) for one in self.allowed_origins]
        return ChildSpec(
            name="server",
            argv=[sys.executable, "-m", "mcp_celery", "serve", self.server, *_flat(options), *chain(*names)],
            env={**self.env(redis_url), **PROMPT_OUTPUT},
            pass_fds=(self.bound.fileno(),),
        )

    def env(self, redis_url: str) -> dict[str, str]:
        """The settings by which any process joins this stack."""
        return {SERVER: self.server, REDIS_URL: redis_url}


def _flat(options: dict[str, str]) -> list[str]:
    return [part for option in options.items() for part in option]


def run_stack(stack: Stack, on_line: Callable[[str, str], None], use: Callable[[str], Awaitable[T]]) -> T:
    """Start a stack, use it once its server answers, and end it.

    Args:
        stack: What to start.
        on_line: Called with a child's name and a line of its output.
        use: Called with the store's URL; the stack is ended when it returns.

    Returns:
        What ``use`` returned.

    Raises:
        StartError: The store cannot be had.
        RunError: A child or the store ended by itself.
        StopRequested: A signal came first.
    """
    return asyncio.run(_run_stack(stack, on_line, use))


async def _run_stack(stack: Stack, on_line: Callable[[str, str], None], use: Callable[[str], Awaitable[T]]) -> T:
    with StopSignals() as signals, contextlib.ExitStack() as held:
        if_killed: tuple[str, ...] = ()
        redis_url = stack.redis_url
        if redis_url is None:
            # Opened on the loop's own thread: nothing else runs yet, and a signal is seen right after.
            redis_url = held.enter_context(private_store(stack.data_dir)).url
            if_killed = leave_store_command(stack.data_dir)
            interruptions = [_raise_on_signal(signals), raise_when_gone(redis_url)]
        else:
            if not stack.in_process:
                await _check_store(redis_url)
            interruptions = [_raise_on_signal(signals)]
        async with Supervisor(on_line, if_killed=if_killed) as supervisor:
            signals.on_repeat = supervisor.hurry
            work = _start_and_use(stack, redis_url, supervisor, use)
            return await unless_interrupted(work, *interruptions, _raise_on_exit(supervisor))


async def _start_and_use(stack: Stack, redis_url: str, supervisor: Supervisor, use: Callable[[str], Awaitable[T]]) -> T:
    if not stack.in_process:
        await supervisor.start(stack.worker(redis_url))
    await supervisor.start(stack.server_process(redis_url))
    host, port = stack.bound.getsockname()[:2]
    # From here on the port is the server's alone, so that it is free the moment the server has ended.
    stack.bound.close()
    await _wait_until_it_answers(reachable(host), port)
    return await use(redis_url)


async def _raise_on_signal(signals: StopSignals) -> None:
    await signals.wait()
    raise StopRequested


async def _raise_on_exit(supervisor: Supervisor) -> None:
    raise RunError(f"{await supervisor.first_exit()}; everything else was stopped")


async def _check_store(redis_url: str) -> None:
    try:
        await asyncio.to_thread(ask_store, redis_url)
    except (RedisError, OSError, ValueError) as error:
        # Without the URL: it may hold a password.
        raise StartError(f"{REDIS_URL}: {error}; unset it to use a private store") from error


async def _wait_until_it_answers(host: str, port: int) -> None:
    # The server listens only after its start-up is complete, so a connection says that it answers.
    while True:
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError:
            await asyncio.sleep(CONNECT_SECONDS)
        else:
            writer.close()
            return
