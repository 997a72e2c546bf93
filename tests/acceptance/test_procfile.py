"""The deployment of the checkout as its Procfile starts it; and the Redis that it recommends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import httpx2
import psutil
import pytest
import redis

from mcp_celery.embedded import find_store_binary
from tests.support.deployment import ROOT, process
from tests.support.locks import reserve_port
from tests.support.nodes import short_folder
from tests.support.waiting import eventually_sync
from tests.support.wire import Wire, follow

PATIENCE_SECONDS = 180.0
MARK = "TEST_MARK"
PATIENT_HONCHO = f"""
from honcho import command, manager
manager.KILL_WAIT = {PATIENCE_SECONDS}  # after which it kills; what is asked is that all end by themselves
command.main()
"""


@pytest.fixture
def checkout() -> Generator[Path]:
    """What a checkout holds besides the package, at a path that leaves room for a socket's name."""
    with short_folder() as folder:
        for name in ("config", "workers"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "Procfile", folder)
        shutil.copy(ROOT / "config" / "env.example", folder / ".env")
        yield folder


def marked(mark: str) -> list[psutil.Process]:
    """Everything that was started with a mark, whoever its parent is now."""
    found: list[psutil.Process] = []
    for candidate in psutil.process_iter():
        with suppress(psutil.Error):
            if candidate.environ().get(MARK) == mark and candidate.status() != psutil.STATUS_ZOMBIE:
                found.append(candidate)
    return found


def answers(url: str) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.get(url).status_code > 0
    return False


@pytest.mark.anyio
@pytest.mark.slow
async def test_honcho_brings_everything_up_and_ctrl_c_ends_it_all(checkout: Path) -> None:
    web, flower, mark, log = reserve_port(), reserve_port(), uuid.uuid4().hex, checkout / "honcho.log"
    with (checkout / ".env").open("a") as env:
        env.write(f"UVICORN_PORT={web}\nFLOWER_PORT={flower}\n")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MCP_CELERY_", "FLOWER_"))}
    environment = {**inherited, MARK: mark, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    try:
        with process([sys.executable, "-c", PATIENT_HONCHO, "start"], environment, log, folder=checkout) as honcho:
            eventually_sync(lambda: answers(f"http://127.0.0.1:{web}/mcp"), seconds=PATIENCE_SECONDS)
            async with Wire(f"http://127.0.0.1:{web}/mcp") as wire:
                task = await wire.create("index_folder", path="config")
                assert (await follow(wire, task["taskId"]))[-1]["status"] == "completed"
            eventually_sync(lambda: answers(f"http://127.0.0.1:{flower}/tasks"), seconds=PATIENCE_SECONDS)
            # As a terminal does: to the whole group in front.
            os.killpg(honcho.pid, signal.SIGINT)
            honcho.wait(PATIENCE_SECONDS)
        eventually_sync(lambda: not marked(mark), what="every process has ended", seconds=PATIENCE_SECONDS)
        assert "sending SIGKILL" not in log.read_text()
    finally:
        for left in marked(mark):
            left.kill()


def test_the_recommended_redis_starts_and_evicts_nothing() -> None:
    with short_folder() as folder:
        socket = folder / "redis.sock"
        argv = [str(find_store_binary()), str(ROOT / "config" / "redis.conf")]
        argv += ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder)]
        with process(argv, dict(os.environ), folder / "redis.log") as server:
            eventually_sync(lambda: socket.exists() or server.poll() is not None, seconds=PATIENCE_SECONDS)
            assert server.poll() is None, (folder / "redis.log").read_text()
            with redis.Redis(unix_socket_path=str(socket)) as store:
                found = {name: store.config_get(name)[name] for name in ("maxmemory-policy", "appendonly", "save")}
            assert found == {"maxmemory-policy": "noeviction", "appendonly": "yes", "save": ""}


@pytest.mark.slow
def test_the_asgi_app_answers_this_machine_only() -> None:
    code = """
from starlette.testclient import TestClient
from workers.asgi import app
with TestClient(app, base_url="http://localhost:8000") as here:
    for headers in ({}, {"host": "evil.example"}):
        print(here.post("/mcp", json={}, headers=headers).status_code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["400", "421"]  # no JSON-RPC, and nobody we know
