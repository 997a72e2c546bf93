"""The checkers themselves: what a test leaves behind is found, and nothing else is."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis

from tests.support.leaks import eternal_keys, no_eternal_keys, no_processes_left, processes_left

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_a_key_without_a_lifetime_is_found_by_its_literal_prefix(store_url: str) -> None:
    prefix = "leaks[*]?:"
    with redis.Redis.from_url(store_url) as client:
        client.set(prefix + "with", "", px=60_000)
        client.set("leaksX:other", "", px=60_000)
        with no_eternal_keys(store_url, [prefix]):
            client.set(prefix + "new", "", px=60_000)
        try:
            with pytest.raises(AssertionError, match="without"), no_eternal_keys(store_url, [prefix]):
                client.persist(prefix + "with")
            assert eternal_keys(store_url, [prefix]) == [prefix + "with"]
            assert eternal_keys(store_url, ["leaks:"]) == []
        finally:
            client.delete(prefix + "with", prefix + "new", "leaksX:other")


def test_a_child_that_is_left_running_is_found_and_killed() -> None:
    children: list[subprocess.Popen[bytes]] = []
    with pytest.raises(AssertionError, match="left running"), no_processes_left(seconds=0):
        children.append(subprocess.Popen(SLEEPER))
    assert children[0].wait(20) == -9


def test_a_daemon_is_found_where_it_works(tmp_path: Path) -> None:
    leave = f"import subprocess; print(subprocess.Popen({SLEEPER!r}, stdout=subprocess.DEVNULL).pid)"
    with pytest.raises(AssertionError, match="left running"), no_processes_left(tmp_path, seconds=0):
        subprocess.run([sys.executable, "-c", leave], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    with no_processes_left(tmp_path):
        # Other tests of the session may share workers, which are children too.
        assert processes_left(psutil.Process().children(recursive=True), tmp_path) == []


def test_a_child_that_has_ended_is_no_leak(tmp_path: Path) -> None:
    with no_processes_left(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", ""], cwd=tmp_path)
    child.wait(20)
