"""What only one process at a time may have, of all that run tests on this machine."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

PORTS: Final = range(20_000, 65_536)
EPHEMERAL_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
USUAL_EPHEMERAL_RANGE: Final = (32_768, 65_535)
"""Of systems that do not tell it."""

_kept: Final = ExitStack()


@contextmanager
def exclusively(lock: Path) -> Generator[None]:
    """Wait until no other process is in such a block with the same file, which stays."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
