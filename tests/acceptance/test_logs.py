"""What the logs of real servers and workers hold: no character that a terminal would obey, no right to read a task."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.support.deployment import Deployment, deployed
from tests.support.waiting import eventually
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

SPEC = "tests.support.servers.loud:server"
OBEYED = "\x9b31m \x1b[2J \u202e reversed"
ESCAPED = "\\u009b31m \\u001b[2J \\u202e reversed"


@pytest.fixture(scope="module", params=["", "config.celeryconfig"], ids=["celery's format", "config/logging.json"])
def deployment(request: pytest.FixtureRequest, store_url: str) -> Iterator[Deployment]:
    settings = {"CELERY_CONFIG_MODULE": request.param} if request.param else {}
    name = f"logs-{bool(request.param)}-{os.getpid()}".lower()
    with deployed(store_url, name, spec=SPEC, settings=settings) as found, found.worker("asyncio"):
        yield found


async def lines_with(deployment: Deployment, log: str, text: str, number: int = 1) -> list[str]:
    """The lines of a log that hold a text, as soon as there are so many."""

    def found() -> list[str] | None:
        lines = [line for line in deployment.logs()[log].split("\n") if text in line]
        return lines if len(lines) >= number else None

    lines = await eventually(found, what=f"{text!r} in {log}")
    assert lines is not None
    return lines


@pytest.mark.smoke
async def test_what_a_tool_logs_is_escaped_by_its_worker(deployment: Deployment) -> None:
    async with Wire(deployment.serve()) as wire:
        await follow(wire, (await wire.create("shout", text=OBEYED))["taskId"])
    log = "worker-asyncio.log"
    assert ESCAPED in (await lines_with(deployment, log, "plainly"))[0]
    assert ESCAPED in (await lines_with(deployment, log, "in a job"))[0]
    assert (await lines_with(deployment, log, "ValueError: "))[0].endswith(ESCAPED), "the SDK logs the traceback"
    assert {"\x9b", "\x1b", "\u202e"}.isdisjoint(deployment.logs()[log])


async def test_what_a_client_sends_is_escaped_by_the_server(deployment: Deployment) -> None:
    """The SDK logs a session that it does not know as it came, and we a ``Host`` that is not allowed."""
    address = urlsplit(deployment.serve())
    for headers, status in ((b"Host: localhost\r\nMcp-Session-Id: evil\x9b31m", 404), (b"Host: evil\x9b31m", 421)):
        with socket.create_connection((str(address.hostname), address.port or 0)) as connection:
            rest = b"\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            connection.sendall(b"POST /mcp HTTP/1.1\r\n" + headers + rest)
            assert connection.recv(64).startswith(f"HTTP/1.1 {status}".encode())
    log = f"server-{deployment.servers}.log"
    assert (await lines_with(deployment, log, "unknown or expired session"))[0].endswith(": evil\\u009b31m")
    assert "the Host 'evil\\x9b31m'" in (await lines_with(deployment, log, "Refused a request"))[0]
    assert "\x9b" not in deployment.logs()[log]
