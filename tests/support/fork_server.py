"""Forks the programs that tests start: ``python -m tests.support.fork_server DESCRIPTOR``, with a listening socket.

It has imported what workers, servers and commands import, which takes them a second of processor time, and nothing that
reads the environment. A child is a program as any other: a session, descriptors, environment and folder of its own, and
the end of an interpreter. ``tests.support.forked`` asks for one: a connection is a child, which is killed when the
connection is closed. ``tests.support.programs`` decides what may be forked.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

from tests.support.forked import receive

IMPORTED: Final = (
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "kombu.transport.redis",
    "mcp.client",
    "mcp.client.streamable_http",
    "mcp.server.mcpserver",
    "rich.console",
    "uvicorn",
    "mcp_celery.client",
    "mcp_celery.engine",
    "mcp_celery.exposed",
    "mcp_celery.protocol",
    "mcp_celery.store",
)
"""Not the modules of ours that make a Celery app: it depends on the environment."""


@dataclass(frozen=True)
class Program:
    """What a child becomes.

    Attributes:
        module: As for ``python -m``.
        argv: Its arguments.
        env: Its whole environment.
        folder: Where it works.
    """

    module: str
    argv: list[str]
    env: dict[str, str]
    folder: str


class Server:
    """Forks a child for each connection, and reports the child's number and end to it.

    Args:
        listening: Where the tests connect.
    """

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._children: dict[socket.socket, int] = {}
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)

    def serve(self) -> tuple[Program, list[int]]:
        """Serve until the tests' process ends.

        Returns:
            In a child, what it becomes, and its standard descriptors.
        """
        signal.signal(signal.SIGCHLD, _do_nothing)
        signal.set_wakeup_fd(self._wake)
        while True:
            ready, _, _ = select.select([0, self._listening, self._woken, *self._children], [], [])
            if 0 in ready:  # standard input ends with the process that runs the tests
                for connection in list(self._children):
                    self._kill(connection)
                sys.exit()
            if self._woken in ready:
                os.read(self._woken, 1024)
                self._report_ends()
            for connection in [one for one in self._children if one in ready]:
                self._kill(connection)
            if self._listening in ready:
                connection, _ = self._listening.accept()
                program, standard = receive(connection)
                if (child := os.fork()) == 0:
                    os.setsid()
                    self._leave(connection)
                    return Program(**program), standard
                for descriptor in standard:
                    os.close(descriptor)
                self._children[connection] = child
                self._report(connection, child)

    def _kill(self, connection: socket.socket) -> None:
        """End a child whose connection was closed; nothing else arrives there."""
        child = self._children.pop(connection)
        with suppress(ProcessLookupError):  # it is about to become the leader of its group
            os.killpg(child, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        connection.close()

    def _report_ends(self) -> None:
        connections = {child: connection for connection, child in self._children.items()}
        while self._children:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            connection = connections[child]
            self._report(connection, os.waitstatus_to_exitcode(status))
            connection.close()
            del self._children[connection]

    def _report(self, connection: socket.socket, number: int) -> None:
        with suppress(BrokenPipeError):
            connection.sendall(f"{number}\n".encode())

    def _leave(self, connection: socket.socket) -> None:
        """Forget, in a child, what is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for one in (self._listening, connection, *self._children):
            one.close()
        os.close(self._woken)
        os.close(self._wake)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """A signal that has a handler is written to the wake-up descriptor."""


def become(program: Program, standard: list[int]) -> None:
    """Run a program as ``python -m`` does."""
    # A shell that runs tests in the background has them ignore it, and their children with them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(program.folder)
    os.environ.clear()
    os.environ.update(program.env)
    sys.path[:] = [program.folder, *filter(None, program.env.get("PYTHONPATH", "").split(os.pathsep)), *sys.path[1:]]
    sys.stdin = sys.__stdin__ = _stream(0, "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, "w")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, "w")  # type: ignore[misc]
    sys.argv = [program.module, *program.argv]
    runpy.run_module(program.module, run_name="__main__", alter_sys=True)


def _stream(descriptor: int, mode: str) -> io.TextIOWrapper:
    """A standard stream as the interpreter makes it."""
    unbuffered = mode == "w" and bool(os.environ.get("PYTHONUNBUFFERED"))
    binary: Any = open(descriptor, f"{mode}b", buffering=0 if unbuffered else -1, closefd=False)  # noqa: SIM115
    errors = "backslashreplace" if descriptor == 2 else "strict"
    lines = descriptor == 2 or binary.isatty()
    return io.TextIOWrapper(binary, encoding="utf-8", errors=errors, line_buffering=lines, write_through=unbuffered)


def main() -> None:
    """Import, serve, and in a child become the program. The child ends where this ends: as an interpreter ends."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a child's collections leave the pages alone that it shares
    become(*Server(socket.socket(fileno=int(sys.argv[1]))).serve())


if __name__ == "__main__":
    main()
