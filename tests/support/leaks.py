"""What a test may not leave behind: Redis keys without a lifetime, and processes.

Plain functions, and context managers over them that a fixture wraps around its tests::

    @pytest.fixture(autouse=True)
    def nothing_left(store_url: str, tmp_path: Path) -> Generator[None]:
        with no_eternal_keys(store_url), no_processes_left(tmp_path):
            yield
"""

import os
import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import psutil
import redis

from tests.support.waiting import eventually_sync

OUR_PREFIXES = ("mcp_celery:", "celery-task-meta-")
"""Our own keys, and Celery's stored results. Kombu's `unacked*`, `_kombu.binding.*` and queues are kombu's to tidy."""


def eternal_keys(url: str, prefixes: Iterable[str] = OUR_PREFIXES) -> list[str]:
    """The keys under the prefixes that would never expire.

    Args:
        url: Of the Redis, as redis-py reads it.
        prefixes: What the keys begin with, literally.
    """
    with redis.Redis.from_url(url) as client:
        return sorted(
            name.decode(errors="replace")
            for prefix in prefixes
            for name in cast("Iterable[bytes]", client.scan_iter(match=_literally(prefix) + "*", count=1000))
            if client.pttl(name) == -1
        )


def _literally(prefix: str) -> str:
    return re.sub(r"([*?\[\]\\^])", r"\\\1", prefix)


@contextmanager
def no_eternal_keys(url: str, prefixes: Iterable[str] = OUR_PREFIXES) -> Generator[None]:
    """Fail when the block leaves a key without a lifetime under one of the prefixes."""
    prefixes = tuple(prefixes)
    before = set(eternal_keys(url, prefixes))
    yield
    left = [name for name in eternal_keys(url, prefixes) if name not in before]
    assert left == [], "keys without a lifetime were left in the store"


def processes_left(known: Iterable[psutil.Process] = (), folder: Path | None = None) -> list[psutil.Process]:
    """Running children of this process, of any depth, and daemons that work inside a folder.

    Args:
        known: Processes that may run.
        folder: A temporary folder; a daemon is nobody's child any more, but is found where it works.
    """
    found = set(psutil.Process().children(recursive=True))
    if folder is not None:
        found.update(process for process in psutil.process_iter() if _works_in(process, folder))
    found -= {*known, psutil.Process()}
    return sorted((process for process in found if _runs(process)), key=lambda process: process.pid)


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder)
    except psutil.Error:  # gone meanwhile, or somebody else's
        return False


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def no_processes_left(folder: Path | None = None, *, seconds: float = 10.0) -> Generator[None]:
    """Fail when the block leaves a process, after giving it some time to end; what was left is killed.

    Args:
        folder: Where daemons that the block starts work.
        seconds: How long those that were told to end may take.
    """
    known = psutil.Process().children(recursive=True)
    yield
    try:
        eventually_sync(lambda: not processes_left(known, folder), seconds=seconds)
    except AssertionError:
        left = processes_left(known, folder)
        shown = [_describe(process) for process in left]
        for process in left:
            _kill(process)
        assert left == [], f"processes were left running: {'; '.join(shown)}"


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return str(process.pid)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
