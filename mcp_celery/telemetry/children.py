"""Measurements of a prefork worker's child processes, which their parent adds up and exports.

A pipe that is made before the pool forks. Each measurement is one line of JSON, shorter than what a pipe takes in one
piece, so that lines of several children do not mix. A full pipe does not hold a child up: it drops the measurement.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import threading
from contextlib import suppress
from typing import Final

from mcp_celery.telemetry.instruments import INSTRUMENTS, Attributes, Instrument

logger = logging.getLogger(__name__)

READ_EVERY_SECONDS: Final = 0.2
PIPE_BYTES: Final = 1_048_576
"""How much the pipe may hold, where the system can be asked for it: thousands of measurements."""
_READ_BYTES: Final = 65_536


class ChildMeasurements:
    """Made by the parent, before it forks."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        with suppress(AttributeError, OSError):  # not on macOS; or more than an unprivileged process may have
            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._rest = b""
        self._has_dropped = False
        self._is_open = True
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read what children write, in a thread."""
        self._thread = threading.Thread(target=self._main, name="mcp-celery-measurements", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Read what is left, and end the thread. Does nothing in a child."""
        if os.getpid() != self._pid or self._ended.is_set():
            return
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.drain()
        with self._lock:
            self._is_open = False
            os.close(self._read)
            os.close(self._write)

    def use_in_child(self) -> None:
        """Have the measurements of this process go to the parent. Does nothing in the parent."""
        if os.getpid() != self._pid:
            Instrument.forward_to(self._send)

    def drain(self) -> None:
        """Take all measurements that children have written."""
        with self._lock, suppress(BlockingIOError):
            while self._is_open and (read := os.read(self._read, _READ_BYTES)):
                *lines, self._rest = (self._rest + read).split(b"\n")
                for line in lines:
                    _take(line)

    def _main(self) -> None:
        while not self._ended.wait(READ_EVERY_SECONDS):
            self.drain()

    def _send(self, name: str, value: float, attributes: Attributes) -> None:
        line = json.dumps([name, value, dict(attributes)]).encode() + b"\n"
        try:
            if len(line) <= select.PIPE_BUF:
                os.write(self._write, line)
                return
        except OSError:  # it is full, or the parent is gone
            pass
        if not self._has_dropped:
            self._has_dropped = True
            logger.warning("measurements of this process are lost: the worker's parent does not read them in time")


def _take(line: bytes) -> None:
    try:
        name, value, attributes = json.loads(line)
        INSTRUMENTS[name](value, attributes)
    except (ValueError, TypeError, KeyError) as error:
        logger.warning("could not read a measurement of a child process: %s", type(error).__name__)
