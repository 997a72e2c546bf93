"""What only one process at a time may have, of all that run tests on this machine."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

PORTS: Final = range(20_000, 65_536)
EPHEMERAL_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
USUAL_EPHEMERAL_RANGE: Final = (32_768, 65_535)
"""Of systems that do not tell it."""

LOOK_EVERY_SECONDS: Final = 0.05

_kept: Final = ExitStack()


@contextmanager
def exclusively(lock: Path) -> Generator[None]:
    """Wait until no other process is in such a block with the same file, which stays."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def shared_by_processes(folder: Path, name: str, start: Callable[[], AbstractContextManager[str]]) -> Generator[str]:
    """Something that the first of several processes starts, and ends when the others no longer use it.

    Args:
        folder: A folder that the processes share.
        name: Names it in the folder.
        start: Starts it, and ends it.

    Yields:
        What the others need to find it, such as a URL.
    """
    turn, users, found = (folder / f"{name}.{part}" for part in ("turn", "users", "found"))
    with ExitStack() as started, users.open("a") as using:
        with exclusively(turn):
            if is_mine := not found.exists():
                found.write_text(started.enter_context(start()))
            fcntl.flock(using, fcntl.LOCK_SH)
        yield found.read_text()
        fcntl.flock(using, fcntl.LOCK_UN)
        while is_mine:
            with exclusively(turn), suppress(BlockingIOError):
                fcntl.flock(using, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.unlink()
                is_mine = False
                started.close()
            time.sleep(LOOK_EVERY_SECONDS)


@contextmanager
def reserved_port() -> Generator[int]:
    """A TCP port of this machine that no other process of tests gets meanwhile.

    For servers that have to be given a port, or that come back on the same one; others choose theirs (``--port 0``).
    It is outside of the range from which the kernel takes the ports of connections: one of those that was found free
    may be in use a moment later.
    """
    folder = Path(tempfile.gettempdir()) / f"mcp-celery-test-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    ports = _ports()
    first = secrets.randbelow(len(ports))  # `random` may be seeded, alike in every process
    for port in [*ports[first:], *ports[:first]]:
        with (folder / str(port)).open("a") as lock:
            if _is_ours(port, lock):
                yield port
                return
    raise RuntimeError(f"no port from {PORTS[0]} on is free")


def reserve_port() -> int:
    """A `reserved_port` for as long as this process lives."""
    return _kept.enter_context(reserved_port())


def _ports() -> list[int]:
    lowest, highest = USUAL_EPHEMERAL_RANGE
    if EPHEMERAL_RANGE.exists():
        lowest, highest = map(int, EPHEMERAL_RANGE.read_text().split())
    # Where the range leaves none, the lock and the look remain.
    return [port for port in PORTS if not lowest <= port <= highest] or list(PORTS)


def _is_ours(port: int, lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EADDRINUSE):
            return False
        raise
    return True
