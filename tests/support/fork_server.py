"""Forks the programs that tests start: ``python -m tests.support.fork_server DESCRIPTOR``, with a socket to the tests.

It has imported what workers, servers and commands import, which takes them a second of processor time, and nothing that
reads the environment. A child is a program as any other: a session, descriptors, environment and folder of its own, and
the end of an interpreter. ``tests.support.programs`` has the other side, and decides what may be forked.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
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

LENGTH_BYTES: Final = 4
DESCRIPTORS: Final = 4
"""Of a request: where the program's status is written, and its standard input, output and error."""
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
    """Forks a child for each request, and reports each child's end.

    Args:
        control: The socket to the tests.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._reports: dict[int, int] = {}
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        os.set_blocking(self._wake, False)

    def serve(self) -> tuple[Program, list[int]] | None:
        """Serve until the tests end.

        Returns:
            In a child, what it becomes, and its standard descriptors; in this process None.
        """
        signal.signal(signal.SIGCHLD, _do_nothing)
        signal.set_wakeup_fd(self._wake)
        while True:
            ready, _, _ = select.select([self._control, self._woken], [], [])
            if self._woken in ready:
                os.read(self._woken, 1024)
                self._report_ends()
            if self._control in ready:
                head, descriptors, _, _ = socket.recv_fds(self._control, LENGTH_BYTES, DESCRIPTORS)
                if not head:
                    return None
                program = Program(**json.loads(self._received(int.from_bytes(head, "big"))))
                report, *standard = descriptors
                if (child := os.fork()) == 0:
                    self._leave(report)
                    return program, standard
                for descriptor in standard:
                    os.close(descriptor)
                self._reports[child] = report
                os.write(report, f"{child}\n".encode())

    def _received(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            received += self._control.recv(length - len(received))
        return received

    def _report_ends(self) -> None:
        while self._reports:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            report = self._reports.pop(child)
            with suppress(BrokenPipeError):  # the test has let go of its process
                os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(report)

    def _leave(self, report: int) -> None:
        """Forget, in a child, what is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for descriptor in (self._woken, self._wake, report, *self._reports.values()):
            os.close(descriptor)


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """A signal that has a handler is written to the wake-up descriptor."""


def become(program: Program, standard: list[int]) -> None:
    """Run a program as ``python -m`` does."""
    os.setsid()
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
    server = Server(socket.socket(fileno=int(sys.argv[1])))
    if (asked := server.serve()) is not None:
        become(*asked)


if __name__ == "__main__":
    main()
