"""The client's library against a server through its restart, and after its task has expired."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mcp.client import Client

from mcp_celery.client import (
    ClientClosedError,
    TaskGoneError,
    TaskHandle,
    TasksClient,
    call_tool_task,
    resilient_http,
)
from tests.support.deployment import MODULE, Deployment, is_listening, process, wait_until
from tests.support.locks import reserve_port
from tests.support.scripted import text_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio


async def test_a_task_outlives_its_server_and_the_client_too(idle_deployment: Deployment, tmp_path: Path) -> None:
    port = reserve_port()
    url = f"http://127.0.0.1:{port}/mcp"
    argv = [sys.executable, "-m", "mcp_celery", "serve", f"{MODULE}:server", "--port", str(port)]
    with idle_deployment.worker("asyncio"):
        with process(argv, idle_deployment.env(), tmp_path / "first.log"):
            wait_until(lambda: is_listening(port), "the server listens")
            client = Client(resilient_http(url), extensions=[TasksClient()])
            await client.__aenter__()
            handle = await call_tool_task(client, "wait_for_file", {"path": str(tmp_path / "go")})
            await anext(handle.changes())
        try:
            (tmp_path / "go").touch()
            with process(argv, idle_deployment.env(), tmp_path / "second.log"):
                assert text_of(await handle.result(60)) == "released"
        finally:
            await client.__aexit__(None, None, None)


async def test_a_restart_ends_a_session_of_2025_11_25_and_a_new_client_finds_its_task(
    idle_deployment: Deployment, tmp_path: Path
) -> None:
    port = reserve_port()
    url = f"http://127.0.0.1:{port}/mcp"
    argv = [sys.executable, "-m", "mcp_celery", "serve", f"{MODULE}:server", "--port", str(port)]

    def client() -> Client:
        return Client(resilient_http(url), extensions=[TasksClient()], mode="legacy")

    with idle_deployment.worker("asyncio"):
        with process(argv, idle_deployment.env(), tmp_path / "first.log"):
            wait_until(lambda: is_listening(port), "the server listens")
            first = client()
            await first.__aenter__()
            handle = await call_tool_task(first, "wait_for_file", {"path": str(tmp_path / "go")})
        try:
            with process(argv, idle_deployment.env(), tmp_path / "second.log"):
                with pytest.raises(ClientClosedError, match=r"use TaskHandle\.resume"):
                    await handle.result(60)
                async with client() as second:
                    (tmp_path / "go").touch()
                    assert text_of(await (await TaskHandle.resume(second, handle.task_id)).result(60)) == "released"
        finally:
            await first.__aexit__(None, None, None)


async def test_an_expired_task_is_gone(url: str) -> None:
    async with Client(resilient_http(url), extensions=[TasksClient()]) as client:
        handle = await call_tool_task(client, "short_lived")
        assert text_of(await handle.result(60)) == "soon forgotten"

        async def is_gone() -> bool:
            try:
                await TaskHandle.resume(client, handle.task_id)
            except TaskGoneError:
                return True
            return False

        await eventually(is_gone)
