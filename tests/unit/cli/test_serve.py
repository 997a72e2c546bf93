"""What ``serve`` and ``dev`` prepare before anything is served."""

from __future__ import annotations

import logging
import resource
import socket
from pathlib import Path
from typing import Final

import click
import pytest
from click.testing import CliRunner

from mcp_celery.cli.dev.stack import Stack
from mcp_celery.cli.main import cli
from mcp_celery.cli.serve import OTHER_FILES, fitted_to_open_files
from mcp_celery.cli.sockets import bind_unix
from mcp_celery.settings import Settings
from mcp_celery.web import HttpLimits
from tests.support.waiting import eventually_sync

LIMITS: Final = HttpLimits.of(Settings.load(http_max_connections=1_000))
UNLIMITED: Final = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "raised"),
    [
        (UNLIMITED, UNLIMITED, 1_000, None),
        (1_000 + OTHER_FILES, 2_000, 1_000, None),
        (1_024, UNLIMITED, 1_000, 1_000 + OTHER_FILES),
        (1_024, 4_096, 1_000, 1_000 + OTHER_FILES),
        (512, 512, 512 - OTHER_FILES, None),
        (64, 100, 1, 100),
    ],
)
def test_there_are_no_more_connections_than_files(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    soft: int,
    hard: int,
    connections: int,
    raised: int | None,
) -> None:
    # What servers that ran in this process before have set.
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    caplog.set_level(logging.WARNING, "uvicorn.error")
    asked: list[tuple[int, int]] = []

    def getrlimit(_kind: int) -> tuple[int, int]:
        return soft, hard

    def setrlimit(_kind: int, limits: tuple[int, int]) -> None:
        asked.append(limits)

    monkeypatch.setattr(resource, "getrlimit", getrlimit)
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    assert fitted_to_open_files(LIMITS).max_connections == connections
    assert [one for one in asked if one != (soft, hard)] == ([] if raised is None else [(raised, hard)])
    assert ("ulimit -n" in caplog.text) is (connections < 1_000)


def test_a_server_that_ends_removes_its_own_unix_socket_and_not_that_of_its_successor(tmp_path: Path) -> None:
    path, clock = tmp_path / "socket", tmp_path / "clock"

    def is_later() -> bool:
        clock.touch()
        return clock.stat().st_mtime_ns > path.stat().st_mtime_ns

    ending, its_file = bind_unix(path)
    ending.close()  # as uvicorn does before it waits for the requests
    eventually_sync(is_later, what="the file system counts another time")
    successor, next_file = bind_unix(path)
    with successor:
        its_file.remove()
        assert path.is_socket()
        path.chmod(0o660)  # by whoever restricts it
        next_file.remove()
        assert not path.exists()
        next_file.remove()


def test_dev_gives_the_names_to_its_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        stack = Stack(
            server="reports:server",
            queues=(),
            bound=bound,
            url="http://127.0.0.1:8000/mcp",
            in_process=False,
            redis_url=None,
            data_dir=Path("unused"),
            pool="asyncio",
            concurrency=None,
            app_dir=Path.cwd(),
            tools=(),
            has_jobs=True,
            allowed_hosts=("mcp.example.com", "10.0.0.5"),
            allowed_origins=("https://app.example.com",),
        )
        words = " ".join(stack.server_process("redis://here").argv)
    assert "--allowed-host mcp.example.com --allowed-host 10.0.0.5 --allowed-origin https://app.example.com" in words


@pytest.mark.parametrize("command", ["serve", "dev"])
@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--allowed-host", "https://mcp.example.com", "a host name or address"),
        ("--allowed-host", "mcp.example.com/mcp", "a host name or address"),
        ("--allowed-origin", "app.example.com", "scheme://host"),
        ("--allowed-origin", "*", "scheme://host"),
    ],
)
def test_a_name_of_another_form_is_refused(command: str, option: str, value: str, expected: str) -> None:
    assert isinstance(cli, click.Group)
    done = CliRunner().invoke(cli, [command, "reports:server", option, value])
    assert done.exit_code == 2
    assert f"{value!r}: expected {expected}" in " ".join(done.output.split())
