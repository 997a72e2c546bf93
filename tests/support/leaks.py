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
from typing import Final, cast

import psutil
import redis

from mcp_celery.common.redis_url import parse
from mcp_celery.store import connect_blocking
from tests.support.programs import fork_servers
from tests.support.waiting import eventually_sync

OUR_PREFIXES = ("mcp_celery:", "celery-task-meta-")
"""Our own keys, and Celery's stored results. Kombu's `unacked*`, `_kombu.binding.*` and queues are kombu's to tidy."""


_FIND_ETERNAL: Final = """
local found = {}
for _, pattern in ipairs(ARGV) do
  for _, key in ipairs(redis.call('KEYS', pattern)) do
    if redis.call('PTTL', key) == -1 then table.insert(found, key) end
  end
end
return found
"""
"""One call for the whole store, which the keys of a session's tests fill with thousands."""


def eternal_keys(url: str, prefixes: Iterable[str] = OUR_PREFIXES) -> list[str]:
    """The keys under the prefixes that would never expire.

    Args:
        url: Of the Redis, as redis-py reads it.
        prefixes: What the keys begin with, literally.
    """
    prefixes = tuple(prefixes)
    with admin_client(url, key=prefixes[0]) as client:
        found = cast("list[bytes]", client.eval(_FIND_ETERNAL, 0, *(f"{_literally(prefix)}*" for prefix in prefixes)))
    return sorted(name.decode(errors="replace") for name in found)


def admin_client(url: str, *, key: str) -> redis.Redis:
    """A client without time-outs.

    Args:
        url: Of the Redis; where it names a cluster, the node is meant that has the key.
        key: The key, or what it begins with.
    """
    if parse(url).cluster is None:
        return redis.Redis.from_url(url)
    return connect_blocking(url, timeout_seconds=60, key=key)


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


def processes_left(
    known: Iterable[psutil.Process] = (), folder: Path | None = None, *, children: bool = True
) -> list[psutil.Process]:
    """Running children of this process, of any depth, and daemons that work inside a folder.

    Args:
        known: Processes that may run, and start others: a shared worker replaces a child that has died.
        folder: A temporary folder; a daemon is nobody's child any more, but is found where it works.
        children: Whether to look for children.
    """
    found = set(psutil.Process().children(recursive=True)) if children else set[psutil.Process]()
    if folder is not None:
        found.update(process for process in psutil.process_iter() if _works_in(process, folder))
    starters = {psutil.Process(), *map(psutil.Process, fork_servers())}
    programs = {*known} - starters
    found -= {*known, *starters}
    left = (process for process in found if _runs(process) and programs.isdisjoint(_parents(process)))
    return sorted(left, key=lambda process: process.pid)


def _parents(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.parents()
    except psutil.NoSuchProcess:
        return []


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
def no_processes_left(folder: Path | None = None, *, children: bool = True, seconds: float = 10.0) -> Generator[None]:
    """Fail when the block leaves a process, after giving it some time to end; what was left is killed.

    Args:
        folder: Where daemons that the block starts work.
        children: Whether the block may leave no child of this process. Where it lasts for more than a test, other
            fixtures start and keep children meanwhile.
        seconds: How long those that were told to end may take.
    """
    known = psutil.Process().children(recursive=True)
    yield
    try:
        eventually_sync(lambda: not processes_left(known, folder, children=children), seconds=seconds)
    except AssertionError:
        left = processes_left(known, folder, children=children)
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
