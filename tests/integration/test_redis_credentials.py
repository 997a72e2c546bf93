"""Credentials of Redis that change while servers and workers run, and those that come from code."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from mcp_celery import Settings
from mcp_celery.errors import StoreUnavailableError
from tests.integration.conftest import TOOLS, Starter, running
from tests.support.live import live_server
from tests.support.locks import reserve_port
from tests.support.nodes import EmbeddedStoreContainer, Pool, ValkeyProcess, environment
from tests.support.programs import ROOT, forked_command
from tests.support.provider import FILE_VARIABLE
from tests.support.servers import tools
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

USER = "app"
RIGHTS = ("on", "~*", "&*", "+@all")
PROVIDER = "tests.support.provider"
JOB_SECONDS = 120.0
ROTATIONS = 3
AT_A_TIME = 4


def set_user(store: ValkeyProcess, user: str, *rules: str) -> None:
    with redis.Redis.from_url(store.url) as client:
        cast(Any, client).execute_command("ACL", "SETUSER", user, *rules)


def disconnect(store: ValkeyProcess, user: str) -> int:
    """End a user's connections; returns how many there were."""
    with redis.Redis.from_url(store.url) as client:
        return int(cast(Any, client).client_kill_filter(user=user))


def replace(path: Path, text: str) -> None:
    """Change a file as those do who mount secrets: nobody reads half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.rename(path)


def users(store: ValkeyProcess) -> set[str]:
    """Whose connections are open, besides this one."""
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        own = str(client.client_id())
        return {one["user"] for one in client.client_list() if one["id"] != own}


def denied(store: ValkeyProcess) -> list[Any]:
    """What the server has refused to users."""
    with redis.Redis.from_url(store.url) as client:
        return cast("list[Any]", cast(Any, client).execute_command("ACL", "LOG"))


async def run_tasks(wire: Wire, ended: list[str], until: asyncio.Event) -> None:
    """Run one task after the other, and note how each ends."""
    while not until.is_set():
        task_id = (await wire.create("report_steadily", count=2, pause_ms=20))["taskId"]
        ended.append((await soon(follow(wire, task_id), seconds=JOB_SECONDS))[-1]["status"])


@asynccontextmanager
async def load(wire: Wire) -> AsyncGenerator[list[str]]:
    """Run tasks as long as the block lasts; gives how they have ended so far."""
    ended: list[str] = []
    until = asyncio.Event()
    running = asyncio.gather(*(run_tasks(wire, ended, until) for _ in range(AT_A_TIME)))
    try:
        yield ended
        until.set()
        await soon(running, seconds=JOB_SECONDS)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def more_end(ended: list[str], running: int = 3 * AT_A_TIME) -> None:
    enough = len(ended) + running
    await eventually(lambda: len(ended) >= enough, what="more tasks end", seconds=JOB_SECONDS)


@pytest.mark.smoke
@pytest.mark.shows("C9")
@pytest.mark.parametrize("pool", ["asyncio", "prefork"])
async def test_a_password_is_rotated_under_load(own: Starter, tmp_path: Path, pool: Pool) -> None:
    store, file = own.valkey(), tmp_path / "password"
    password = uuid.uuid4().hex
    set_user(store, USER, f">{password}", *RIGHTS)
    replace(file, f"{password}\n")
    url = store.url.replace("unix://", f"unix://{USER}@")
    async with running(url, "secrets", pool, MCP_CELERY_REDIS_PASSWORD_FILE=str(file)) as (deployment, wire):
        async with load(wire) as ended:
            for _ in range(ROTATIONS):
                await more_end(ended)
                fresh = uuid.uuid4().hex
                set_user(store, USER, f">{fresh}")
                replace(file, f"{fresh}\n")
                set_user(store, USER, f"<{password}")
                password = fresh
                assert disconnect(store, USER)
            await more_end(ended)
        assert set(ended) == {"completed"}
        assert users(store) == {USER}
        assert denied(store) == []
        assert password not in "".join(deployment.logs().values())


@pytest.mark.parametrize("attribute", ["instance", "make", "FromFile"])
async def test_a_provider_gives_user_and_password(own: Starter, tmp_path: Path, attribute: str) -> None:
    store, file = own.valkey(options={"port": (port := reserve_port())}), tmp_path / "credentials"
    for user in ("blue", "green"):
        set_user(store, user, f">{user}-password", *RIGHTS)
    replace(file, "blue\nblue-password")
    settings = {"MCP_CELERY_REDIS_CREDENTIALS": f"{PROVIDER}:{attribute}", FILE_VARIABLE: str(file)}
    async with running(f"redis://127.0.0.1:{port}?db=2", "secrets", "asyncio", **settings) as (deployment, wire):
        async with load(wire) as ended:
            await more_end(ended)
            assert users(store) == {"blue"}
            replace(file, "green\ngreen-password")
            assert disconnect(store, "blue")
            await more_end(ended)
            await eventually(lambda: users(store) == {"green"}, what="each connection is made again")
        assert set(ended) == {"completed"}
        processes = set(file.with_suffix(".asked").read_text().split())
        assert len(processes) >= 2  # the server and the worker
        assert "-password" not in "".join(deployment.logs().values())


async def test_a_provider_that_fails_is_named(own: Starter, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.load(
        redis_url=own.valkey().url,
        namespace="secrets",
        redis_credentials=f"{PROVIDER}:Failing",
        broker_url="memory://",
        result_backend="cache+memory://",
    )
    async with live_server(tools.build, settings) as live:
        with pytest.raises(StoreUnavailableError):
            await live.submit("add", {"a": 1, "b": 2})
    assert "MCP_CELERY_REDIS_CREDENTIALS gave no credentials: LookupError" in caplog.text
    assert "s3cret-of-the-vault" not in caplog.text


@pytest.mark.parametrize("what", ["server", "worker"])
def test_a_password_file_that_is_missing_is_named_at_start(own_store: EmbeddedStoreContainer, what: str) -> None:
    commands = {
        "server": [*forked_command("mcp_celery"), "serve", TOOLS, "--port", "0"],
        "worker": [*forked_command("celery"), "-A", "mcp_celery", "worker"],
    }
    env = environment(
        MCP_CELERY_REDIS_URL=own_store.url, MCP_CELERY_REDIS_PASSWORD_FILE="/nowhere/password", MCP_CELERY_SERVER=TOOLS
    )
    ran = subprocess.run(
        commands[what], env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=JOB_SECONDS
    )
    assert ran.returncode
    said = (ran.stdout + ran.stderr).splitlines()
    assert "MCP_CELERY_REDIS_PASSWORD_FILE: cannot read /nowhere/password: No such file or directory" in said[-1]
    assert "Traceback" not in "\n".join(said)
