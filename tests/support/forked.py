"""Runs a program in a child of the fork server: ``python -I -S forked.py SOCKET MODULE ARGUMENT ...``.

It is the program for whoever starts it: it has its descriptors, passes signals on, and ends as the program ends. It
imports little and starts in no time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, Final

LENGTH_BYTES: Final = 4
STANDARD: Final = 3
"""Descriptors of a request: a program's standard input, output and error."""
PASSED_ON: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def ask(
    path: str, module: str, argv: Sequence[str], *, env: Mapping[str, str], folder: str, standard: Sequence[int]
) -> socket.socket:
    """Ask the fork server for a program.

    Args:
        path: The server's socket.
        module: What ``python -m`` would run.
        argv: Its arguments.
        env: Its whole environment.
        folder: Where it works.
        standard: Its standard input, output and error.

    Returns:
        A connection on which two lines arrive: the number of its process, and how it ended. Closing it kills the
        program.
    """
    message = json.dumps({"module": module, "argv": list(argv), "env": dict(env), "folder": folder}).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    socket.send_fds(connection, [len(message).to_bytes(LENGTH_BYTES, "big")], list(standard))
    connection.sendall(message)
    return connection


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What :func:`ask` sent: the program, and its standard descriptors."""
    head, standard, _, _ = socket.recv_fds(connection, LENGTH_BYTES, STANDARD)
    length = int.from_bytes(head, "big")
    message = b""
    while len(message) < length:
        message += connection.recv(length - len(message))
    return json.loads(message), standard


def main() -> None:
    """Be the program."""
    path, module, *argv = sys.argv[1:]
    connection = ask(path, module, argv, env=os.environ, folder=os.getcwd(), standard=range(STANDARD))  # noqa: PTH109
    lines = connection.makefile("r")
    child = int(lines.readline())

    def pass_on(number: int, _frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    for descriptor in range(STANDARD):
        os.close(descriptor)
    status = int(lines.readline() or -signal.SIGKILL)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
