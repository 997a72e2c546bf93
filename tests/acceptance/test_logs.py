"""What the logs of real servers and workers hold: no character that a terminal would obey, no right to read a task."""

from __future__ import annotations

import json
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
        task_id = (await wire.create("shout", text=OBEYED))["taskId"]
        await follow(wire, task_id)
    log = "worker-asyncio.log"
    assert ESCAPED in (await lines_with(deployment, log, "plainly"))[0]
    assert ESCAPED in (await lines_with(deployment, log, "in a job"))[0]
    assert (await lines_with(deployment, log, "ValueError: "))[0].endswith(ESCAPED), "the SDK logs the traceback"
    assert (await lines_with(deployment, log, "Tool 'shout' failed"))[0].endswith(f"(task {task_id[:8]}…)")
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


async def test_json_names_the_job_of_each_record(store_url: str) -> None:
    settings = {"MCP_CELERY_LOG_FORMAT": "json"}
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with (
        deployed(store_url, f"logs-json-{os.getpid()}", spec=SPEC, settings=settings) as found,
        found.worker("asyncio"),
    ):
        async with Wire(found.serve(), meta={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}) as wire:
            task_id = (await wire.create("shout", text=OBEYED))["taskId"]
            await follow(wire, task_id)
        await lines_with(found, "worker-asyncio.log", "succeeded in")
        logs = found.logs()
    assert task_id not in str(logs)
    assert {"\x9b", "\x1b", "\u202e"}.isdisjoint(str(logs))
    server, worker = (
        [json.loads(line) for line in logs[name].splitlines() if line.startswith("{")]
        for name in ("server-1.log", "worker-asyncio.log")
    )
    assert next(one["event"] for one in server if one.get("task_id") == f"{task_id[:8]}…") == "task.created"
    job = {"task_id": f"{task_id[:8]}…", "component": "shout", "job_id": f"anon:{task_id[:8]}…:tool:shout"}
    for said in ("plainly ", "in a job ", "Tool 'shout' failed"):
        record = next(one for one in worker if one["message"].startswith(said))
        assert record["message"].count(OBEYED[:5]) or said.startswith("Tool")
        assert record.items() >= {**job, "trace_id": trace_id}.items()
    assert f"ValueError: {OBEYED}" in record["exception"]
    for said in (" received", " succeeded in"):
        record = next(one for one in worker if said in one["message"] and one["logger"].startswith("celery"))
        assert record.items() >= job.items()
    ended = next(one for one in (*server, *worker) if one.get("event") == "task.ended")
    assert ended.items() >= {"attempt": 1, "tool_error": True, "task_status": "completed"}.items()
    assert all({"time", "level", "logger", "message"} <= one.keys() for one in (*server, *worker))
    plain = [line for line in logs["server-1.log"].splitlines() if line and not line.startswith("{")]
    assert plain == []
