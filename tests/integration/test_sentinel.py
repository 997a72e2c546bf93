"""Redis Sentinel: the master fails, or hands over, while a server and a worker use it for records, push, broker and
results.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

import httpx2
import pytest
import redis
from kombu.exceptions import OperationalError

from mcp_celery import Settings
from mcp_celery.engine import TaskRecord
from mcp_celery.errors import QueueUnavailableError, StoreUnavailableError
from mcp_celery.operate.doctor.sentinels import check_sentinels
from mcp_celery.server.connections import backend_of
from mcp_celery.store import RedisBackend, connect, connect_blocking
from tests.integration.conftest import Starter, running
from tests.integration.test_redis_urls import tls_options, tls_server, valkey_binary
from tests.support.certificates import Authority
from tests.support.live import ANYONE, Gate, host_app, live_server
from tests.support.locks import reserve_port
from tests.support.programs import ROOT
from tests.support.sentinels import MASTER
from tests.support.servers import tools
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

PASSWORD: Final = "s3cr/t:p@ss word?;%23"
SENTINEL_PASSWORD: Final = "w4tch,er:of@masters"
JOB_SECONDS: Final = 120.0
SHORT_LEASES: Final = {"MCP_CELERY_HEARTBEAT_MS": "1000"}
"""A failover lasts longer than the lease of a worker then."""
KEPT: Final = 5
UNAVAILABLE: Final = -32603
SENTINEL_RIGHTS: Final = (
    (ROOT / "docs/redis.md").read_text().partition("user mcp-celery on >SECRET ")[2].split("\n")[0].split()
)
"""What the documentation gives to a user of Sentinels."""


async def end_of(wire: Wire, task_id: str) -> str:
    return (await soon(follow(wire, task_id), seconds=JOB_SECONDS))[-1]["status"]


async def created(wire: Wire, tool: str, **arguments: Any) -> str:
    """Create a task as soon as the server can. Until then its answer is an error of the server."""

    async def task_id() -> str | None:
        answer = await wire.call(tool, **arguments)
        if "error" in answer.message:
            assert answer.error["code"] == UNAVAILABLE, answer.error
            return None
        return answer.result["taskId"]

    found = await eventually(task_id, what="a task is created", seconds=JOB_SECONDS)
    assert found is not None
    return found


async def is_ready(wire: Wire) -> bool:
    """What `/readyz` says."""
    async with httpx2.AsyncClient() as http:
        answer = await http.get(f"{wire.url.removesuffix('/mcp')}/readyz")
    assert answer.status_code in (200, 503)
    return answer.status_code == 200


async def doctors_words(url: str) -> dict[str, list[str]]:
    """What the doctor says of Sentinels, by level."""
    backend = backend_of(Settings.load(redis_url=url))
    assert isinstance(backend, RedisBackend)
    said: dict[str, list[str]] = {"ok": [], "warning": [], "error": []}
    for finding in await check_sentinels(backend):
        said[finding.level].append(finding.text)
    return said


@pytest.mark.parametrize("server", ["installed", "valkey"])
async def test_a_master_that_is_killed_takes_nothing_with_it_that_its_replica_had(
    own: Starter, gate: Gate, server: str
) -> None:
    binary = valkey_binary() if server == "valkey" else None
    watched = own.watched(password=PASSWORD, sentinel_password=SENTINEL_PASSWORD, binary=binary)
    secret = f"sentinel_password={quote(SENTINEL_PASSWORD, safe='')}"
    url = f"{watched.url}/2?{secret}".replace("://", f"://:{quote(PASSWORD, safe='')}@")
    async with running(url, "sentinel", "asyncio", **SHORT_LEASES) as (deployment, wire):
        kept = [await created(wire, "add", a=number, b=1) for number in range(KEPT)]
        assert [await end_of(wire, task_id) for task_id in kept] == ["completed"] * KEPT
        held = (await wire.create("report_and_hold", gate=str(gate)))["taskId"]
        follower = asyncio.create_task(follow(wire, held, began := asyncio.Event()))
        await gate.reached()
        await soon(began.wait(), seconds=JOB_SECONDS)
        assert await is_ready(wire)
        with watched.admin(0) as master:
            assert master.wait(1, 5_000) == 1

        watched.servers[0].kill()

        async def is_unready() -> bool:
            return not await is_ready(wire)

        await eventually(is_unready, what="the server is not ready")
        later = await created(wire, "add", a=1, b=2)
        assert await end_of(wire, later) == "completed"
        assert [(await wire.get(task_id))["status"] for task_id in kept] == ["completed"] * KEPT
        assert (await wire.get(held))["status"] == "working"
        await eventually(lambda: is_ready(wire), what="the server is ready")
        gate.open()
        assert (await soon(follower, seconds=JOB_SECONDS))[-1]["status"] == "completed"
        assert len(gate.arrived()) == 1, "a live job was taken for lost"
        logs = "\n".join(deployment.logs().values())
        for text in (PASSWORD, SENTINEL_PASSWORD, quote(PASSWORD, safe=""), quote(SENTINEL_PASSWORD, safe="")):
            assert text not in logs
        assert "has died" not in logs

        async def misses_a_replica() -> bool:
            errors = (await doctors_words(url))["error"]
            return errors == ["the master has no live replica that could take its place"]

        await eventually(misses_a_replica, what="each Sentinel knows that the former master is down")


async def test_a_master_that_hands_over_is_left_before_it_becomes_a_replica(own: Starter) -> None:
    """Sentinels leave its clients to it for some ten seconds, and then it forgets what they have written."""
    watched = own.watched()
    url = f"sentinel://127.0.0.1:1,{','.join(watched.addresses)}/{MASTER}?client_name=ours"
    settings = Settings.load(redis_url=url, namespace="handed-over")
    blocking: Any = connect_blocking(url, timeout_seconds=5)
    async with live_server(tools.build, settings) as live:
        before = await live.submit("add", {"a": 1, "b": 1})
        assert await asyncio.to_thread(blocking.get, "moved") is None
        async with live.engine.watch(ANYONE, [before.task_id]) as watch:
            assert (await soon(watch.__anext__())).record.status == "working"
            with watched.admin(0) as old, watched.ask(0) as sentinel:
                old.client_pause(600_000, all=False)  # else it would lose what is written now
                old.execute_command("ACL", "SETUSER", "default", "-replicaof", "-slaveof")  # it stays a master
                sentinel.execute_command("SENTINEL FAILOVER", MASTER)

            async def submitted() -> TaskRecord | None:
                try:
                    return await live.submit("add", {"a": 1, "b": 2})
                except (StoreUnavailableError, QueueUnavailableError):
                    return None

            after = await eventually(submitted, what="the replica is the master", seconds=JOB_SECONDS)
            assert after is not None
            assert watched.master() == 1

            def listening_to_the_old() -> list[Any]:
                with watched.admin(0) as old:
                    return [one for one in old.client_list(_type="pubsub") if one["name"] == "ours"]

            await eventually(lambda: not listening_to_the_old(), what="push comes from the new master")
            await live.engine.cancel(ANYONE, before.task_id)
            assert (await soon(watch.__anext__(), seconds=JOB_SECONDS)).record.status == "cancelled"

        with watched.admin(1) as new:
            new.set("moved", "yes")
        await eventually(
            lambda: asyncio.to_thread(blocking.get, "moved"), what="a blocking client reads from the new master"
        )
    blocking.close()
    said = await doctors_words(url)
    assert [text for text in said["warning"] if text.startswith("the Sentinel 127.0.0.1:1 cannot be asked")]


async def test_servers_and_sentinels_are_reached_over_tls_with_a_password_of_a_file(
    own: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "authority")
    options = tls_options(authority, reserve_port(), "no", "127.0.0.1")
    tls_server(own, options).teardown()  # it may have been built without TLS
    watched = own.watched(password=PASSWORD, tls={name: str(value) for name, value in options.items()})
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    url = watched.url.replace("sentinel://", "rediss+sentinel://")
    trusting = f"{url}?ssl_ca_certs={authority.certificate}"
    monkeypatch.setenv("MCP_CELERY_REDIS_URL", trusting)
    monkeypatch.setenv("MCP_CELERY_REDIS_PASSWORD_FILE", str(file))
    settings = Settings.load()
    backend = backend_of(settings)
    assert isinstance(backend, RedisBackend)
    assert backend.unusable() is None
    client = connect(trusting, max_connections=2, timeout_seconds=5, credentials=backend.credentials)
    try:
        assert await client.call(lambda: cast(Any, client.redis).ping())
    finally:
        await client.aclose()
    with host_app(settings) as app:
        assert cast(Any, app.backend).client.ping()
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
    with connect_blocking(url, timeout_seconds=5) as distrusting, pytest.raises(redis.RedisError, match="CERTIFICATE"):
        distrusting.ping()

    file.write_text("outdated")
    refused = backend.unusable()
    assert refused is not None
    assert refused.is_refusal
    assert "MCP_CELERY_REDIS_PASSWORD_FILE" in refused.reason
    with host_app(settings) as app, app.connection_for_write() as connection, pytest.raises(OperationalError):
        connection.ensure_connection(max_retries=1, interval_start=0)


@pytest.mark.smoke
async def test_sentinels_have_users_of_their_own_and_a_refusal_names_the_options(own: Starter) -> None:
    watched = own.watched(sentinel_password=SENTINEL_PASSWORD)
    for number in range(len(watched.sentinels)):
        with watched.ask(number) as sentinel:
            sentinel.execute_command("ACL", "SETUSER", "guard", "on", f">{SENTINEL_PASSWORD}", *SENTINEL_RIGHTS)
    password = f"sentinel_password={quote(SENTINEL_PASSWORD, safe='')}"
    for url, advice, is_refusal in [
        (watched.url, "sentinel_password in MCP_CELERY_REDIS_URL", True),
        (f"{watched.url}?sentinel_password=wrong", "sentinel_password in MCP_CELERY_REDIS_URL", True),
        (f"{watched.url}-2?{password}", "the name in MCP_CELERY_REDIS_URL", False),
    ]:
        found = backend_of(Settings.load(redis_url=url)).unusable()
        assert found is not None
        assert advice in found.reason
        assert found.is_refusal == is_refusal
    for user in ("", "&sentinel_username=guard"):
        settings = Settings.load(redis_url=f"{watched.url}?{password}{user}", namespace="guarded")
        said = await doctors_words(settings.redis_url)
        assert (said["warning"], said["error"]) == ([], [])
        assert "3 of 3 Sentinels answer" in said["ok"][0]
        async with live_server(tools.build, settings) as live:
            assert live.tasks.connections.result_place() == "with records"
            assert await asyncio.to_thread(live.tasks.connections.unusable) is None
            assert cast(Any, live.app.backend).client.ping()
