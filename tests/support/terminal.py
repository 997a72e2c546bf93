"""Commands at a terminal: what they show, and what somebody types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import pyte

from tests.support.deployment import wait_until

GIVE_UP_SECONDS: Final = 180.0


@contextmanager
def at_a_terminal(
    argv: Sequence[str],
    *,
    folder: Path,
    env: Mapping[str, str],
    columns: int = 0,
    rows: int = 0,
    screen: pyte.Screen | None = None,
) -> Generator[Terminal]:
    """Run a command at a terminal, which it controls; it is killed where it has not ended by itself.

    Args:
        argv: The command.
        folder: Where it works.
        env: Its whole environment.
        columns: The terminal's width; 0: the terminal does not say, so that ``COLUMNS`` counts.
        rows: Its height.
        screen: What it shows already; None: nothing.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    running = subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=env, start_new_session=True
    )
    os.close(slave)
    try:
        yield Terminal(running, master, screen or pyte.Screen(columns or 80, rows or 24))
    finally:
        running.kill()
        running.wait()
        os.close(master)


class Terminal:
    """A command at a terminal: what it shows, and what somebody types.

    Attributes:
        text: All that was written.
        screen: The terminal's screen, which obeys what was written.
    """

    def __init__(self, running: subprocess.Popen[bytes], master: int, screen: pyte.Screen) -> None:
        self._running = running
        self._master = master
        self._shown = ""
        self._stream = pyte.Stream(screen)
        self.text = ""
        self.screen = screen

    @property
    def rows(self) -> list[str]:
        """What the screen shows, without the empty rows at its end."""
        rows = [row.rstrip() for row in self.screen.display]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def until(self, pattern: str) -> re.Match[str]:
        """Read until something is shown, and forget what came before."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while not (found := re.search(pattern, self._shown)):
            more = self._read()
            assert more, f"{pattern!r} was not shown:\n{self._shown[-2000:]}"
            assert time.monotonic() < deadline, f"{pattern!r} was not shown:\n{self._shown[-2000:]}"
            self._shown += more
        self._shown = self._shown[found.end() :]
        return found

    def _read(self) -> str:
        """What is shown next; nothing where the program has ended, or shows nothing for too long."""
        if not select.select([self._master], [], [], GIVE_UP_SECONDS)[0]:
            return ""
        try:
            more = os.read(self._master, 65536).decode(errors="replace")
        except OSError:
            return ""
        self.text += more
        self._stream.feed(more)
        return more

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._running.send_signal(signal.SIGINT)

    def terminate(self) -> None:
        """As `kill` does."""
        self._running.terminate()

    def computes(self, seconds: float) -> None:
        """Wait until the command, which is not forked, has used the processor for so long."""
        process = psutil.Process(self._running.pid)
        before = process.cpu_times().user
        wait_until(lambda: process.cpu_times().user >= before + seconds, "the command computes")

    def end(self) -> int:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while self._read():
            assert time.monotonic() < deadline, "it does not end"
        return self._running.wait(GIVE_UP_SECONDS)
