"""The processes of ``dev`` and ``demo``: a store, one Celery worker and one server, which end together.

A server that keeps its tasks in memory is started alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from redis.exceptions import RedisError

from mcp_celery.cli.dev.inspection import Inspected, InspectedTool, inspect_server
from mcp_celery.cli.dev.store import REDIS_URL, ask_store, leave_store_command, private_store, raise_when_gone
from mcp_celery.cli.dev.supervisor import ChildSpec, StopSignals, Supervisor, unless_interrupted
from mcp_celery.cli.errors import RunError, StartError, start_errors
from mcp_celery.cli.options import POOLS, default_concurrency
from mcp_celery.cli.sockets import bind, reachable, url_of
from mcp_celery.embedded import default_data_dir
from mcp_celery.redis_credentials import credentials_of
from mcp_celery.settings import ENV_PREFIX, MEMORY_URL, Settings

SERVER: Final = f"{ENV_PREFIX}SERVER"
FLOWER_CONFIGURATION: Final = Path("config/flowerconfig.py")
"""Where a checkout of the project has it, and where its users copy it."""
PROMPT_OUTPUT: Final = {"PYTHONUNBUFFERED": "1", "MCP_CELERY_LOG_FORMAT": "text"}
"""Lines are read here as they come, and shown to people."""
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
        app_dir: Folder in which the server's module is looked for first.
        tools: The server's tools.
        has_jobs: Whether any component runs as a task; if not, there is no worker.
        flower: The socket on which Flower will listen; None: Flower is not started.
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
    app_dir: Path
    tools: tuple[InspectedTool, ...]
    has_jobs: bool
    flower: socket.socket | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()

    @classmethod
    def prepare(
        cls,
        server: str,
        *,
        host: str,
        port: int,
        data_dir: Path | None,
        pool: str,
        concurrency: int | None = None,
        app_dir: Path | None = None,
        found: Inspected | None = None,
    ) -> Self:
        """Check everything that can be wrong with what the user asked for.

        Args:
            server: The user's server as ``module:attribute``.
            host: Address to listen on.
            port: Port to listen on; 0: a free one.
            data_dir: Folder of the private store; None: the one of the current folder.
            pool: One of `POOLS`.
            concurrency: Jobs at a time; None: the pool's default.
            app_dir: Folder in which the server's module is looked for first; None: the current one.
            found: What the server has; None: it is imported here.

        Raises:
            StartError: A setting, the module, its attribute or the port is wrong.
        """
        app_dir = (app_dir or Path.cwd()).resolve()
        if found is None:
            found = inspect_server(server, app_dir)
        bound = bind(host, port)
        return cls(
            server=server,
            queues=found.queues,
            bound=bound,
            url=url_of(bound),
            redis_url=os.environ.get(REDIS_URL) or (MEMORY_URL if found.in_process else None),
            in_process=found.in_process,
            data_dir=data_dir or default_data_dir(),
            pool=pool,
            concurrency=concurrency or default_concurrency(pool),
            app_dir=app_dir,
            tools=found.tools,
            has_jobs=found.has_jobs,
        )

    @property
    def has_worker(self) -> bool:
        """Whether there is a worker."""
        return self.has_jobs and not self.in_process

    @property
    def starting(self) -> str:
        """The line that says what is started, since that takes some seconds."""
        parts = ["a private store"] if self.redis_url is None else []
        parts += ["a Celery worker"] if self.has_worker else []
        parts += ["Flower"] if self.flower is not None else []
        before = f"{', '.join(parts)} and " if parts else ""
        return f"Starting {before}an MCP server …"

    @property
    def code_folders(self) -> tuple[Path, ...]:
        """The folders of the user's code."""
        return code_folders(self.server, self.app_dir)

    async def start_code(self, supervisor: Supervisor, redis_url: str) -> None:
        """Start the processes that run the user's code: the worker, where there is one, and the server.

        Args:
            supervisor: Runs them.
            redis_url: The store.
        """
        if self.has_worker:
            await supervisor.start(self.worker(redis_url))
        await supervisor.start(self.server_process(redis_url))

    def worker(self, redis_url: str) -> ChildSpec:
        """The Celery worker, started as users start it."""
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
            # Only `dev --verbose` shows the lines of requests.
            argv=[
                sys.executable,
                "-m",
                "mcp_celery",
                "serve",
                self.server,
                "--access-log",
                *_flat(options),
                *chain(*names),
            ],
            env={**self.env(redis_url), **PROMPT_OUTPUT},
            pass_fds=(self.bound.fileno(),),
        )

    def flower_process(self, redis_url: str, port: int) -> ChildSpec:
        """Flower, which shows the jobs in a browser.

        Args:
            redis_url: The store.
            port: Where it listens.
        """
        command = [sys.executable, "-m", "celery", "-A", "mcp_celery", "flower", "--address=127.0.0.1"]
        return ChildSpec(
            name="flower",
            argv=[*command, f"--port={port}", *flower_configuration()],
            env={**self.env(redis_url), **PROMPT_OUTPUT},
        )

    def env(self, redis_url: str) -> dict[str, str]:
        """The settings by which any process joins this stack."""
        search = os.pathsep.join(filter(None, (str(self.app_dir), os.environ.get("PYTHONPATH"))))
        path = {} if self.app_dir == Path.cwd() else {"PYTHONPATH": search}
        return {SERVER: self.server, REDIS_URL: redis_url, **path}


def code_folders(server: str, app_dir: Path) -> tuple[Path, ...]:
    """The folders of the user's code: the one that modules are looked for in, and that of the server's file.

    Args:
        server: The user's server, as ``Stack`` takes it.
        app_dir: Folder in which its module is looked for first.
    """
    file = Path(server.partition(":")[0])
    folders = {app_dir, file.resolve().parent} if file.suffix == ".py" else {app_dir}
    return tuple(one for one in folders if not folders.intersection(one.parents))


def flower_configuration() -> list[str]:
    """The option that names Flower's configuration, where there is one."""
    return [f"--conf={FLOWER_CONFIGURATION}"] if FLOWER_CONFIGURATION.is_file() else []


def _flat(options: dict[str, str]) -> list[str]:
    return [part for option in options.items() for part in option]


def run_stack(
    stack: Stack,
    on_line: Callable[[str, str], None],
    use: Callable[[str], Awaitable[T]],
    attend: Callable[[Supervisor, str], Coroutine[Any, Any, None]] | None = None,
) -> T:
    """Start a stack, use it once its server answers, and end it.

    Args:
        stack: What to start.
        on_line: Called with a child's name and a line of its output.
        use: Called with the store's URL; the stack is ended when it returns.
        attend: Called with what runs the processes, and the store's URL: it does what is to be done when one ends, and
            goes on for ever. None: the stack is ended when one of its processes ends by itself.

    Returns:
        What ``use`` returned.

    Raises:
        StartError: The store cannot be had.
        RunError: A child or the store ended by itself.
        StopRequested: A signal came first.
    """
    return asyncio.run(_run_stack(stack, on_line, use, attend))


async def _run_stack(
    stack: Stack,
    on_line: Callable[[str, str], None],
    use: Callable[[str], Awaitable[T]],
    attend: Callable[[Supervisor, str], Coroutine[Any, Any, None]] | None,
) -> T:
    with StopSignals() as signals, contextlib.ExitStack() as held:
        if_killed: tuple[str, ...] = ()
        redis_url = stack.redis_url
        if redis_url is None:
            # Opened on the loop's own thread: nothing else runs yet, and a signal is seen right after.
            redis_url = held.enter_context(private_store(stack.data_dir)).url
            if_killed = leave_store_command(stack.data_dir)
            interruptions = [raise_on_signal(signals), raise_when_gone(redis_url)]
        else:
            if not stack.in_process:
                await _check_store(redis_url)
            interruptions = [raise_on_signal(signals)]
        async with Supervisor(on_line, if_killed=if_killed) as supervisor:
            signals.on_repeat = supervisor.hurry
            work = _start_and_use(stack, redis_url, supervisor, use, keep_socket=attend is not None)
            attending = _raise_on_exit(supervisor) if attend is None else attend(supervisor, redis_url)
            return await unless_interrupted(work, *interruptions, attending)


async def _start_and_use(
    stack: Stack, redis_url: str, supervisor: Supervisor, use: Callable[[str], Awaitable[T]], *, keep_socket: bool
) -> T:
    await stack.start_code(supervisor, redis_url)
    if stack.flower is not None:
        port = stack.flower.getsockname()[1]
        stack.flower.close()
        await supervisor.start(stack.flower_process(redis_url, port))
    host, port = stack.bound.getsockname()[:2]
    if not keep_socket:
        # From here on the port is the server's alone, so that it is free the moment the server has ended.
        stack.bound.close()
    await _wait_until_it_answers(reachable(host), port)
    return await use(redis_url)


async def raise_on_signal(signals: StopSignals) -> None:
    """Wait for a signal.

    Raises:
        StopRequested: It came.
    """
    await signals.wait()
    raise StopRequested


async def _raise_on_exit(supervisor: Supervisor) -> None:
    raise RunError(f"{await supervisor.first_exit()}; everything else was stopped")


async def _check_store(redis_url: str) -> None:
    with start_errors():
        credentials = credentials_of(Settings.load())
    try:
        await asyncio.to_thread(ask_store, redis_url, credentials)
    except (RedisError, OSError, ValueError) as error:
        # Without the URL: it may hold a password.
        raise StartError(f"{REDIS_URL}: {str(error).removesuffix('.')}; unset it to use a private store") from error


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
