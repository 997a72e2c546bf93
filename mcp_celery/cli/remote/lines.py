"""Standard input, a line at a time, without a thread that could not be interrupted."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from typing import Final

LONGEST_READ: Final = 65536


class Lines:
    """Reads lines while a caller waits for one. The last caller gets the next: an interruption has its answer first.

    Args:
        fd: What to read; None: standard input.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._given_fd = fd
        self._waiting: list[asyncio.Future[str | None]] = []
        self._lines: deque[str] = deque()
        self._rest = b""
        self._ended = False

    @property
    def _fd(self) -> int:
        return sys.stdin.fileno() if self._given_fd is None else self._given_fd

    @property
    def is_terminal(self) -> bool:
        """Whether a person types."""
        return os.isatty(self._fd)

    async def read(self) -> str | None:
        """The next line, without its end; None after the last."""
        if self._lines:
            return self._lines.popleft()
        if self._ended:
            return None
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        if len(self._waiting) == 1:
            self._watch()
        try:
            return await waiter
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            if not self._waiting:
                self._unwatch()

    def _watch(self) -> None:
        try:
            asyncio.get_running_loop().add_reader(self._fd, self._take)
        except PermissionError:  # a file, which is always ready
            while self._waiting:
                self._take()

    def _unwatch(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)

    def _take(self) -> None:
        data = os.read(self._fd, LONGEST_READ)
        *whole, self._rest = (self._rest + data).split(b"\n")
        if not data:
            self._ended = True
            whole, self._rest = [self._rest] if self._rest else [], b""
        self._lines.extend(line.decode(errors="replace").rstrip("\r") for line in whole)
        while self._waiting and (self._lines or self._ended):
            waiter = self._waiting.pop()
            if not waiter.done():
                waiter.set_result(self._lines.popleft() if self._lines else None)
