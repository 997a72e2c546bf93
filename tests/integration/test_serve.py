"""``mcp-celery serve`` as it runs in production: what it does at its start, where it listens, and several processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx2
import psutil
import pytest
from mcp.client import Client

from mcp_celery import Settings
from mcp_celery.client import TasksClient, call_tool_task
from tests.integration.conftest import Starter, worker_environment
from tests.support.live import Gate
from tests.support.nodes import EmbeddedStoreContainer, ProcessContainer, ValkeyProcess, environment, short_folder
from tests.support.programs import forked_command
from tests.support.waiting import eventually, eventually_sync, soon

pytestmark = pytest.mark.anyio

SERVER: Final = "tests.support.servers.tools:server"
NOWHERE: Final = "redis://:wrongsecret@127.0.0.1:1/0"
SERVED: Final = 406
"""The status of a request that is served, and accepts no form of an answer."""
LOST: Final = "the task store (MCP_CELERY_REDIS_URL) failed"
BACK: Final = "the task store (MCP_CELERY_REDIS_URL) answers again"
BROKER_LOST: Final = "the broker (MCP_CELERY_REDIS_URL) failed"
BROKER_BACK: Final = "the broker (MCP_CELERY_REDIS_URL) answers again"


class Serving(ProcessContainer):
    """``mcp-celery serve``."""

    ready_prompt = "Answers at"

    def __init__(self, folder: Path, *options: str, **settings: str) -> None:
        where = () if "--uds" in options else ("--port", "0")
        argv = [sys.executable, "-m", "mcp_celery", "serve", SERVER, *where, *options]
        super().__init__(argv, name="server", folder=folder, env=environment(**settings))

    @property
    def url(self) -> str:
        found = re.search(r"Answers at (http://\S+)", self.logs())
        assert found, self.logs()
        return found[1]

    def processes(self) -> list[psutil.Process]:
        """The processes of ``--workers``."""
        return [one for one in self.family() if "--child" in one.cmdline()]


@contextmanager
def serving(*options: str, **settings: str) -> Generator[Serving]:
    with short_folder() as folder:
        node = Serving(folder, *options, **settings)
        node.start()
        try:
            yield node
        finally:
            node.stop()


def serve_once(*options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a server that cannot start."""
    return subprocess.run(
        [*forked_command("mcp_celery"), "serve", SERVER, "--port", "0", *options],
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def ask(path: Path, host: str, *headers: str) -> tuple[int, str]:
    """Send an empty request to a Unix socket; returns status and body."""
    lines = ["POST /mcp HTTP/1.1", f"Host: {host}", "Content-Length: 0", "Connection: close", *headers, "", ""]
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        client.connect(str(path))
        client.sendall("\r\n".join(lines).encode())
        answer = b"".join(iter(lambda: client.recv(65_536), b"")).decode()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.fixture
def guarded(own: Starter) -> ValkeyProcess:
    """A store that asks for a password."""
    return own.valkey("guarded", options={"requirepass": "right"})


def with_password(store: ValkeyProcess, password: str) -> str:
    return store.url.replace("unix://", f"unix://:{password}@")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("name", "service"),
    [
        ("REDIS_URL", "the task store"),
        ("REDIS_PASSWORD_FILE", "the task store"),
        ("BROKER_URL", "the broker"),
        ("RESULT_BACKEND", "the result backend"),
    ],
)
def test_a_wrong_password_ends_the_start_and_names_the_setting(
    guarded: ValkeyProcess, store: EmbeddedStoreContainer, tmp_path: Path, name: str, service: str
) -> None:
    settings = {"MCP_CELERY_REDIS_URL": store.url, f"MCP_CELERY_{name}": with_password(guarded, "wrongsecret")}
    if name == "REDIS_PASSWORD_FILE":
        (tmp_path / "password").write_text("wrongsecret\n")
        settings |= {"MCP_CELERY_REDIS_URL": guarded.url, f"MCP_CELERY_{name}": str(tmp_path / "password")}
    done = serve_once(**settings)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {service} (MCP_CELERY_")
    assert "refuses the user or the password" in line
    assert f"MCP_CELERY_{name}" in line
    assert "wrongsecret" not in line


def test_a_wrong_password_of_rabbitmq_ends_the_start(rabbitmq_url: str, store: EmbeddedStoreContainer) -> None:
    wrong = re.sub(r"//\w+:[^@]+@", "//guest:wrongsecret@", rabbitmq_url)
    done = serve_once(MCP_CELERY_REDIS_URL=store.url, MCP_CELERY_BROKER_URL=wrong)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Error: the broker (MCP_CELERY_BROKER_URL) refuses the user or the password" in line
    assert "wrongsecret" not in line


@pytest.mark.parametrize(
    ("name", "url", "service"),
    [
        ("REDIS_URL", NOWHERE, "the task store (MCP_CELERY_REDIS_URL)"),
        ("BROKER_URL", "amqp://guest:wrongsecret@127.0.0.1:1//", "the broker (MCP_CELERY_BROKER_URL)"),
    ],
)
def test_a_service_that_cannot_be_reached_in_time_ends_the_start(
    store: EmbeddedStoreContainer, name: str, url: str, service: str
) -> None:
    done = serve_once("--wait", "0.2", **{"MCP_CELERY_REDIS_URL": store.url, f"MCP_CELERY_{name}": url})
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert f"Error: {service} cannot be used, after --wait 0.2 seconds: " in lines[-1]
    assert sum(f"{service} failed" in line for line in lines) == 1
    assert "wrongsecret" not in done.stderr


def test_the_start_waits_for_a_store_that_answers_in_time(own: Starter) -> None:
    valkey = own.valkey("late")
    valkey.stop()
    with serving("--wait", "120", MCP_CELERY_REDIS_URL=valkey.url) as server:
        eventually_sync(lambda: BROKER_LOST in server.logs(), what="the server waits")
        valkey.start()
        server.ready()
        assert server.logs().count(LOST) == 1
        assert server.logs().index(BACK) < server.logs().index(Serving.ready_prompt)


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends(own: Starter, gate: Gate) -> None:
    valkey = own.valkey("lost")
    valkey.stop()
    settings = {"MCP_CELERY_REDIS_URL": valkey.url, "MCP_CELERY_HEARTBEAT_MS": "100"}
    with serving(**settings) as server:
        server.ready()
        for number in (1, 2):
            await eventually(lambda count=number: server.logs().count(LOST) == count, what="it is lost")
            for _ in range(3):  # each of them fails
                async with Client(server.url, extensions=[TasksClient()]) as client:
                    with pytest.raises(Exception, match=r"store|unavailable"):
                        await call_tool_task(client, "hold", {"gate": str(gate)})
            assert server.logs().count(LOST) == number
            valkey.start()
            await eventually(lambda count=number: server.logs().count(BACK) == count, what="it is back")
            if number == 1:  # nobody has published anything since
                await eventually(lambda: BROKER_BACK in server.logs(), what="the broker is back")
                valkey.stop()
        assert server.logs().count(BROKER_LOST) == 1


def test_a_server_serves_on_a_unix_socket_behind_a_proxy(store: EmbeddedStoreContainer, tmp_path: Path) -> None:
    config = json.loads((Path(__file__).parents[2] / "config" / "logging.json").read_text())
    config["formatters"]["key_value"]["format"] = "own=%(message)s"
    (tmp_path / "logging.json").write_text(json.dumps(config))
    with short_folder() as folder:
        path = folder / "server.sock"
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(str(path))
        options = ["--uds", str(path), "--root-path", "/tools", "--log-config", str(tmp_path / "logging.json")]
        with serving(*options, MCP_CELERY_REDIS_URL=store.url) as server:
            server.ready()
            assert f"own=Answers at the Unix socket {path}, path /mcp" in server.logs()
            assert path.stat().st_mode & 0o777 == 0o666
            status, text = ask(path, "mcp.example.com", "X-Forwarded-For: 203.0.113.7")
            assert status == 421
            assert "--allowed-host or MCP_CELERY_ALLOWED_HOSTS" in text
            assert "own=Refused a request of 203.0.113.7: the Host 'mcp.example.com'" in server.logs()
            status, text = ask(path, "localhost", "Origin: https://page.example")
            assert status == 403
            assert "--allowed-origin or MCP_CELERY_ALLOWED_ORIGINS" in text
            assert ask(path, "localhost", "Content-Type: application/json")[0] == SERVED
            taken = serve_once("--uds", str(path))
            assert taken.returncode == 2
            assert "--uds and --port exclude each other" in taken.stderr
        assert not path.exists()


def test_a_forwarded_address_is_believed_of_known_proxies_only(store: EmbeddedStoreContainer) -> None:
    with serving("--forwarded-allow-ips", "10.0.0.0/8", MCP_CELERY_REDIS_URL=store.url) as server:
        server.ready()
        headers = {"Host": "evil.example", "X-Forwarded-For": "203.0.113.7"}
        assert httpx2.post(server.url, headers=headers).status_code == 421
        assert "Refused a request of 127.0.0.1: the Host 'evil.example'" in server.logs()
        assert '"POST ' not in server.logs()


def test_requests_are_logged_on_request(store: EmbeddedStoreContainer) -> None:
    with serving("--access-log", MCP_CELERY_REDIS_URL=store.url) as server:
        server.ready()
        assert httpx2.post(server.url, headers={"Host": "evil.example"}).status_code == 421
        eventually_sync(lambda: '"POST /mcp HTTP/1.1" 421' in server.logs(), what="the line of the request")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_uvicorns_lines_have_the_format_of_all_others(store: EmbeddedStoreContainer, log_format: str) -> None:
    settings = {"MCP_CELERY_REDIS_URL": store.url, "MCP_CELERY_LOG_FORMAT": log_format, "MCP_CELERY_REDIS_ULR": "x"}
    with serving("--access-log", **settings) as server:
        server.ready()
        assert httpx2.post(server.url, headers={"Host": "evil.example"}).status_code == 421
        server.send(signal.SIGTERM)
        server.process.wait(60)
        lines = server.logs().splitlines()
    if log_format == "json":
        found = [(one["level"], one["logger"], one["message"]) for one in map(json.loads, lines)]
    else:
        form = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ([A-Z]+) (\S+): (.*)")
        found = [match.groups() if (match := form.fullmatch(line)) else line for line in lines]
    assert {type(one) for one in found} == {tuple}, "each line has the format"
    assert {"uvicorn.error", "uvicorn.access"} < {logger for _, logger, _ in found}
    for text in ("MCP_CELERY_REDIS_ULR is not a setting", "Answers at http://", "Finished server process"):
        assert any(text in message for _, _, message in found), text


@pytest.mark.smoke
@pytest.mark.usefixtures("shared_worker")
async def test_several_processes_serve_both_revisions_and_a_killed_one_is_replaced(settings: Settings) -> None:
    with serving("--workers", "2", "--stateless", **worker_environment(settings)) as server:
        await eventually(lambda: server.logs().count("Answers at") == 2, what="both answer")
        first, second = server.processes()
        for mode in ("auto", "legacy"):
            async with Client(server.url, mode=mode) as client:
                for _ in range(4):
                    found = await soon(client.call_tool("add", {"a": 2, "b": 3}))
                    assert found.structured_content == {"result": 5}
            async with Client(server.url, mode=mode, extensions=[TasksClient()]) as client:
                handle = await soon(call_tool_task(client, "add", {"a": 2, "b": 3}))
                assert (await soon(handle.result())).structured_content == {"result": 5}
        first.send_signal(signal.SIGKILL)
        await eventually(lambda: server.logs().count("Answers at") == 3, what="it is replaced")
        assert "was ended unexpectedly by signal SIGKILL; it is started again" in server.logs()
        assert len(server.processes()) == 2
        assert second.is_running()
        server.send(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert not second.is_running()


@pytest.mark.parametrize(
    ("options", "settings", "reason"),
    [
        (["--workers", "2"], {}, "--workers 2 needs --stateless: a session of revision 2025-11-25 lives in one"),
        (["--workers", "2", "--stateless"], {"MCP_CELERY_REDIS_URL": "memory://"}, "memory of one process"),
        (["--workers", "2", "--transport", "stdio"], {}, "--workers 2: on stdio there is one client"),
        (["--log-config", os.devnull], {}, "--log-config /dev/null: "),
        (["--forwarded-allow-ips", "proxy.internal"], {}, "neither an address nor a network"),
        (["--root-path", "tools"], {}, "expected a path such as /tools"),
    ],
)
def test_options_that_cannot_be_served_are_refused(options: list[str], settings: dict[str, str], reason: str) -> None:
    done = serve_once(*options, **settings)
    assert done.returncode == 2
    assert reason in " ".join(done.stderr.splitlines()[-1].split())
