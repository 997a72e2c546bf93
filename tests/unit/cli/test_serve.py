"""What ``serve`` and ``dev`` prepare before anything is served."""

from __future__ import annotations

import socket
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mcp_celery.cli.main import cli
from mcp_celery.cli.stack import Stack


def test_dev_gives_the_names_to_its_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        stack = Stack(
            server="reports:server",
            queues=(),
            bound=bound,
            url="http://127.0.0.1:8000/mcp",
            redis_url=None,
            data_dir=Path("unused"),
            pool="asyncio",
            concurrency=None,
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
