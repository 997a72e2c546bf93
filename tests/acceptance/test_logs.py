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
    """The SDK logs a ``Host`` that it refuses as it came."""
    address = urlsplit(deployment.serve())
    with socket.create_connection((str(address.hostname), address.port or 0)) as connection:
        head = (
            b"POST /mcp HTTP/1.1\r\nHost: evil\x9b31m\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
        )
        connection.sendall(head)
        assert connection.recv(64).startswith(b"HTTP/1.1 421")
    log = f"server-{deployment.servers}.log"
    assert (await lines_with(deployment, log, "Invalid Host header"))[0].endswith(": evil\\u009b31m")
    assert "\x9b" not in deployment.logs()[log]
