"""Starting the programs under test, as processes of their own."""

from __future__ import annotations

import atexit
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from tests.support.forked import ask

ROOT: Final = Path(__file__).parents[2]
FORKED: Final = ("celery", "mcp_celery", "tests.differential.plain_server", "tests.support.asking", "uvicorn")
"""The modules that the fork server runs. Others, and other interpreters, are started by themselves."""
READ_AT_IMPORT: Final = ("CELERY_CUSTOM_WORKER_POOL",)
"""Variables that a program must have from its very start."""


class Running(Protocol):
    """A process; what tests use of :class:`subprocess.Popen`."""

    pid: int

    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def start(
    argv: Sequence[str], *, env: Mapping[str, str], folder: Path = ROOT, stdin: int = subprocess.DEVNULL, output: int
) -> Running:
    """Start a program as the leader of a session.

    Args:
        argv: The command. Where it is ``python -m celery`` or ``python -m mcp_celery``, the fork server starts it.
        env: Its whole environment.
        folder: Where it works.
        stdin: A descriptor, or nothing.
        output: The descriptor of its standard output and error.
    """
    if [*argv[:2]] == [sys.executable, "-m"] and argv[2] in FORKED and not any(map(env.get, READ_AT_IMPORT)):
        with open(os.devnull) as nothing:  # noqa: PTH123 - it is no file
            standard = (nothing.fileno() if stdin == subprocess.DEVNULL else stdin, output, output)
            return Forked(ask(fork_server().path, argv[2], argv[3:], env=env, folder=str(folder), standard=standard))
    return subprocess.Popen(
        argv, stdin=stdin, stdout=output, stderr=output, env=env, cwd=folder, start_new_session=True
    )


def typed(
    command: str, *, env: Mapping[str, str], folder: Path, give_up_seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run a command as it is typed into a shell, and wait for its end.

    Args:
        command: The line.
        env: Its whole environment.
        folder: Where it is typed.
        give_up_seconds: How long it may take.

    Returns:
        Its exit status, and in ``stdout`` what it has printed, errors too.
    """
    return subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=give_up_seconds,
        cwd=folder,
        env=env,
        check=False,
    )


def forked_command(module: str) -> list[str]:
    """A command that is ``python -m module`` for programs that start it by themselves, run by the fork server."""
    return [sys.executable, "-I", "-S", str(ROOT / "tests" / "support" / "forked.py"), fork_server().path, module]


class Forked:
    """A process that the fork server started.

    Args:
        connection: The one on which the server reports.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reports = connection.makefile("r")
        self._lock = threading.Lock()
        self.returncode: int | None = None
        self.pid = int(self._reports.readline())

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
                self.returncode = int(self._reports.readline())
                self._reports.close()
                self._connection.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(0.002)
        return status

    def send_signal(self, sig: int, /) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that forks programs; it lives as long as this one."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mcpc-")
        self.path = str(Path(self._folder.name) / "fork")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.path)
            listening.listen()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(listening.fileno())],
                pass_fds=[listening.fileno()],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()


_servers: list[ForkServer] = []


def fork_server() -> ForkServer:
    """This process's fork server; it is started when it is first needed."""
    if not _servers:
        _servers.append(ForkServer())
        atexit.register(_servers[0].close)
    return _servers[0]


def fork_servers() -> list[int]:
    """The processes of the fork servers, which tests leave running."""
    return [server.process.pid for server in _servers]


def commands_folder(folder: Path, **names: str) -> Path:
    """Make a folder for ``PATH`` with commands that the fork server runs.

    Args:
        folder: Where to make it.
        **names: Of each module of `FORKED` the command.

    Returns:
        The folder, ``folder/bin``.
    """
    place = folder / "bin"
    place.mkdir()
    for module, name in names.items():
        command = place / name
        command.write_text(f'#!/bin/sh\nexec {shlex.join(forked_command(module))} "$@"\n')
        command.chmod(0o755)
    return place
