"""pytest-celery nodes that are processes of this machine: a store, a broker, a Celery worker.

pytest-celery asks little of a "container", and a process group can answer all of it, so no Docker is contacted. A node
is ready when it says so, never after a while; what it logged is kept for the report of a failing test; and its teardown
leaves no process behind, however it ended.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, cast

import celery
import psutil
from celery import Celery
from pytest_celery import (  # pyright: ignore[reportMissingTypeStubs]
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestWorker,
)

from mcp_celery.cli.options import POOLS
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.embedded import EmbeddedStore, find_store_binary
from mcp_celery.settings import ENV_PREFIX
from tests.support.programs import ROOT, Running, start
from tests.support.waiting import eventually_sync

Pool = Literal["asyncio", "prefork", "threads", "solo"]


ALONE: Final = ("--without-mingle", "--without-gossip")
"""Workers alone on a broker have nobody to ask at start, which would take a second."""
READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
COVERAGE_IS_MEASURED: Final = "COVERAGE_PROCESS_CONFIG" in os.environ
"""Whether `make coverage` runs. Processes are killed at the end of their tests: a worker takes seconds to shut down.
Where coverage is measured they shut down, because a killed process writes no data."""


class NodeError(Exception):
    """A node did not come up; the message ends with its log."""


@contextmanager
def short_folder() -> Generator[Path]:
    """A private folder whose path leaves room for the name of a Unix socket, as pytest's own do not."""
    with tempfile.TemporaryDirectory(prefix="mcpc-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def environment(**settings: str) -> dict[str, str]:
    """The environment of a node: this one without any ``MCP_CELERY_*`` of the developer's own, and the settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return {**inherited, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **settings}


def wait_for_ends(processes: Iterable[psutil.Process]) -> None:
    """Wait until processes have ended, for ``STOP_SECONDS`` at most.

    Not ``psutil.wait_procs``, which raises ``FileNotFoundError`` where a kernel says ENOENT of a process that is gone:
    psutil 7.2 expects only ESRCH of ``pidfd_open``.
    """
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        with suppress(psutil.TimeoutExpired, FileNotFoundError):
            process.wait(max(0.0, deadline - time.monotonic()))


def _session_of(leader: int) -> list[psutil.Process]:
    """The processes of a session."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError):
            if process.pid != os.getpid() and os.getsid(process.pid) == leader:
                found.append(process)
    return found


class ProcessContainer:
    """What pytest-celery calls a container, as a process group.

    Args:
        argv: The command.
        name: For its log, and for the report of a failing test.
        folder: Where its log is kept.
        env: Its environment, None for this one.
    """

    ready_prompt: ClassVar[str]

    def __init__(self, argv: Sequence[str], *, name: str, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.id = uuid.uuid4().hex
        self.name = name
        self._argv = list(argv)
        self._env = environment() if env is None else dict(env)
        self._log = folder / f"{name}-{self.id[:8]}.log"
        self._log.touch()
        self._started_at = self._marked_at = 0
        self._process: Running | None = None
        self._family: list[psutil.Process] = []

    @property
    def process(self) -> Running:
        assert self._process is not None, f"{self.name} was never started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def status(self) -> str:
        return "running" if self._process is not None and self._process.poll() is None else "exited"

    def start(self) -> None:
        """Start the process as the leader of a group of its own."""
        self._started_at = self._log.stat().st_size
        with self._log.open("ab") as log:
            self._process = start(self._argv, env=self._env, output=log.fileno())

    def logs(self) -> str:
        return self._log.read_text(errors="replace")

    def mark(self) -> None:
        """From here on, what is logged belongs to another test."""
        self._marked_at = self._log.stat().st_size

    def logs_since_mark(self) -> str:
        return self._log.read_bytes()[self._marked_at :].decode(errors="replace")

    def _is_ready(self) -> bool:
        log = self._log.read_bytes()[self._started_at :].decode(errors="replace")
        if self.ready_prompt in log:
            return True
        if self.status != "running":
            raise NodeError(f"{self.name} ended with {self.process.returncode}:\n{log[-4000:]}")
        return False

    def ready(self) -> bool:
        """Wait until the process says that it is ready.

        Raises:
            NodeError: It ended instead.
        """
        return eventually_sync(self._is_ready, what=f"{self.name} is ready", seconds=READY_SECONDS)

    def family(self) -> list[psutil.Process]:
        """The process and its descendants."""
        try:
            leader = psutil.Process(self.pid)
            return [leader, *leader.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal that ends the process, and wait until it has."""
        self._family = self.family()
        self.send(_signal(signal))
        self.process.wait(STOP_SECONDS)

    def kill_all(self) -> None:
        """End the process and everything that it started as ``kill -9`` does, the parent first: it learns nothing."""
        self._family = self.family()
        for process in self._family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(STOP_SECONDS)

    def stop(self) -> None:
        """End the process as an operator would, and everything that it started."""
        self._end(gently=True)

    def _end(self, *, gently: bool) -> None:
        if self._process is None:
            return
        family = {process.pid: process for process in [*self._family, *self.family()]}
        if gently and self.status == "running":
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        # A child that was forked meanwhile is in no list, but in the worker's session.
        family |= {process.pid: process for process in _session_of(self.pid)}
        for process in family.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(STOP_SECONDS)
        wait_for_ends(family.values())

    def restart(self, timeout: float | None = None) -> None:
        self.stop()
        self.start()
        self.ready()

    def reload(self) -> None:
        """Docker's way to learn a container's state; a process is asked directly."""

    def remove(self, **_: Any) -> None:
        self.teardown()

    def teardown(self) -> None:
        """End the process and everything that it started, at the end of its tests."""
        self._end(gently=COVERAGE_IS_MEASURED)


def _signal(value: str | int) -> signal.Signals:
    return signal.Signals[value] if isinstance(value, str) else signal.Signals(value)


class ValkeyProcess(ProcessContainer):
    """A Valkey or Redis server on a Unix socket that keeps nothing: for tests that stop, pause or kill a broker.

    Args:
        folder: Where its socket and its log are.
        name: Names both.
        options: Further options of its configuration, such as the port on which it listens as well.
        binary: The server, None for the machine's own.
    """

    ready_prompt = "eady to accept connections"

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "valkey",
        options: Mapping[str, object] | None = None,
        binary: Path | None = None,
    ) -> None:
        self._socket = folder / f"{name}.sock"
        own = {"port": 0, "unixsocket": self._socket, "save": "", "appendonly": "no", "dir": folder}
        arguments = [
            part for option, value in {**own, **(options or {})}.items() for part in (f"--{option}", str(value))
        ]
        super().__init__([str(binary or find_store_binary()), *arguments], name=name, folder=folder)

    @property
    def url(self) -> str:
        return f"unix://{self._socket}?db=0"

    @property
    def celeryconfig(self) -> dict[str, str]:
        return _celeryconfig(self.url)


class EmbeddedStoreContainer:
    """The store that people without a Redis get, as pytest-celery's container. It keeps its data over a restart."""

    def __init__(self, folder: Path) -> None:
        self.id = uuid.uuid4().hex
        self.name = "store"
        self._folder = folder / self.name
        self._store: EmbeddedStore | None = None

    @property
    def status(self) -> str:
        return "exited" if self._store is None else "running"

    @property
    def url(self) -> str:
        assert self._store is not None, "the store is stopped"
        return self._store.url

    @property
    def celeryconfig(self) -> dict[str, str]:
        return _celeryconfig(self.url)

    def start(self) -> None:
        self._store = EmbeddedStore.open(self._folder)

    def ready(self) -> bool:
        """An opened store has answered."""
        return self._store is not None

    def stop(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def kill(self, signal: str | int = "SIGTERM") -> None:
        self.stop()

    def crash(self) -> None:
        """End it as ``kill -9`` does."""
        server = psutil.Process(int((self._folder / "store.pid").read_text()))
        server.kill()
        wait_for_ends([server])
        self.stop()

    def restart(self, timeout: float | None = None) -> None:
        self.stop()
        self.start()

    def logs(self) -> str:
        return (self._folder / "store.log").read_text(errors="replace")

    def reload(self) -> None:
        """Nothing is cached."""

    def remove(self, **_: Any) -> None:
        self.stop()

    def teardown(self) -> None:
        self.stop()


StoreContainer = EmbeddedStoreContainer | ValkeyProcess


def _celeryconfig(url: str) -> dict[str, str]:
    return {"url": celery_url(url), "host_url": celery_url(url)}


class WorkerProcess(ProcessContainer):
    """``python -m celery -A mcp_celery worker``.

    Args:
        server: The server to run, ``module:attribute``.
        pool: Celery's pool.
        folder: Where its log is kept.
        settings: ``MCP_CELERY_*`` and other variables of its environment.
        concurrency: Jobs at a time, None for the pool's default.
        level: Log level.
        flags: Further options of the command.
    """

    ready_prompt = " ready."

    def __init__(
        self,
        server: str,
        pool: Pool,
        *,
        folder: Path,
        settings: Mapping[str, str],
        concurrency: int | None = 2,
        level: str = "INFO",
        flags: Sequence[str] = (),
    ) -> None:
        self.pool = pool
        self._level = level
        self._node = f"{pool}-{uuid.uuid4().hex[:8]}"
        options: dict[str, object] = {"concurrency": concurrency, "hostname": f"{self._node}@%h", "loglevel": level}
        named = [f"--{name}={value}" for name, value in options.items() if value is not None]
        super().__init__(
            [sys.executable, "-m", "celery", "-A", "mcp_celery", "worker", *POOLS[pool], *ALONE, *named, *flags],
            name=f"worker-{pool}",
            folder=folder,
            env=environment(**{f"{ENV_PREFIX}SERVER": server, **settings}),
        )

    @property
    def hostname(self) -> str:
        """The node name that the worker has for Celery."""
        return f"{self._node}@{socket.gethostname()}"

    def children(self) -> list[int]:
        """The processes in which jobs run, where the pool has any."""
        return [process.pid for process in self.family() if process.pid != self.pid]

    def version(self) -> str:
        return celery.__version__

    def log_level(self) -> str:
        return self._level

    def worker_name(self) -> str:
        return self._node

    def worker_queue(self) -> str:
        return "celery"


class BrokerNode(CeleryTestBroker):
    """A store as broker."""

    def __init__(self, container: StoreContainer) -> None:
        super().__init__(cast(Any, container))


class BackendNode(CeleryTestBackend):
    """A store as result backend."""

    def __init__(self, container: StoreContainer) -> None:
        super().__init__(cast(Any, container))


class WorkerNode(CeleryTestWorker):
    """A worker as pytest-celery's node."""

    def __init__(self, process: WorkerProcess, app: Celery) -> None:
        super().__init__(cast(Any, process), app)
        self.process = process

    def hostname(self) -> str:
        return self.process.hostname

    def get_running_processes_info(
        self, columns: list[str] | None = None, filters: dict[str, str] | None = None
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [process.as_dict(columns) for process in self.process.family()]
        return [one for one in found if all(one.get(name) == value for name, value in (filters or {}).items())]
