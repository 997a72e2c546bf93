"""Tasks that are kept in memory belong to one process: another of the same server would not find them."""

from __future__ import annotations

import atexit
import fcntl
import multiprocessing
import os
import sys
from pathlib import Path
from tempfile import gettempdir
from typing import Final

from mcp_celery.errors import ConfigurationError

_held: Final[dict[Path, int]] = {}
"""The locks of this process."""


def require_only_process(namespace: str) -> None:
    """Refuse to serve beside another process of the same supervisor (``uvicorn --workers 2``, gunicorn, hypercorn).

    A process that no such supervisor has started is not asked: servers that are started one by one have nothing in
    common.

    Args:
        namespace: The server's namespace.

    Raises:
        ConfigurationError: Another process of the supervisor serves it already.
    """
    if not _has_supervisor():
        return
    path = Path(gettempdir()) / f"mcp-celery-{os.getuid()}-{os.getppid()}-{namespace}.lock"
    if path in _held:
        return
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ConfigurationError(
            f"the server {namespace!r} keeps its tasks in memory (memory://), which no other process can read, and "
            "another process serves it already: start one process, or keep tasks in Redis"
        ) from None
    _held[path] = lock
    atexit.register(path.unlink, missing_ok=True)


def _has_supervisor() -> bool:
    """Whether a program started this process that starts several of one server."""
    return multiprocessing.parent_process() is not None or "gunicorn.arbiter" in sys.modules
