"""Processes of a run: each in a session of its own, ended with everything it started however the run ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 10.0


def free_port() -> int:
    """A TCP port that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def is_listening(port: int) -> bool:
    """Whether a process accepts connections on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def process(
    argv: Sequence[str], env: Mapping[str, str], log: Path, is_ready: Callable[[], bool]
) -> Generator[subprocess.Popen[bytes]]:
    """A process, from when it is ready until the context ends.

    Args:
        argv: Its command line.
        env: Its environment.
        log: Where its output goes.
        is_ready: Whether it has come up.

    Raises:
        RuntimeError: It did not come up; with the end of its log.
    """
    with log.open("ab") as out:
        started = subprocess.Popen(argv, env=env, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not is_ready():
            if started.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(argv)} did not start:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.02)
        yield started
    finally:
        _stop(started)


def _stop(started: subprocess.Popen[bytes]) -> None:
    started.terminate()
    with suppress(subprocess.TimeoutExpired):
        started.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)  # whatever of its session is left
    started.wait()


def raise_on_sigterm() -> None:
    """Let SIGTERM end the run as Ctrl-C does, so that what was started is stopped."""

    def end(*_: object) -> None:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, end)
