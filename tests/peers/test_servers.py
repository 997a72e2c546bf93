"""The client's library against a server that somebody else wrote: FastMCP 4."""

from __future__ import annotations

import os
from collections.abc import Iterator

import mcp_types as types
import pytest
from mcp.client import Client
from mcp.client.session import ClientRequestContext

from bench import peer
from mcp_celery.client import (
    TaskCancelledError,
    TaskFailedError,
    TaskGoneError,
    TaskHandle,
    TasksClient,
    call_tool_task,
    resilient_http,
)
from tests.support.deployment import ROOT, is_listening, process, wait_until
from tests.support.locks import exclusively, reserve_port
from tests.support.scripted import text_of

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def peer_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A FastMCP 4 server: it has no push, and a poll interval of five seconds."""
    peer.VENV.parent.mkdir(exist_ok=True)
    try:
        with exclusively(peer.VENV.with_suffix(".lock")):
            python = peer.ensure()
    except peer.PeerMissingError as error:
        pytest.skip(f"no FastMCP 4 here: {error}")
    port = reserve_port()
    env = {**os.environ, "FASTMCP_DOCKET_URL": "memory://", "PYTHONPATH": str(ROOT)}
    argv = [str(python), str(ROOT / "tests/support/peers/fastmcp4.py"), str(port)]
    with process(argv, env, tmp_path_factory.mktemp("peer") / "peer.log") as child:
        wait_until(lambda: is_listening(port) or child.poll() is not None, "FastMCP listens")
        yield f"http://127.0.0.1:{port}/mcp"


async def say_ada(context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
    return types.ElicitResult(action="accept", content={"name": "Ada"})


async def test_fastmcp_gives_results_asks_and_fails(peer_url: str) -> None:
    # The peer closes connections that were idle for five seconds, which is also its poll interval. A poll that meets
    # such an end fails alone and is sent again; with the SDK's own transport the client would end.
    client = Client(resilient_http(peer_url), extensions=[TasksClient()], elicitation_callback=say_ada)
    async with client:
        added = await call_tool_task(client, "add", {"a": 1, "b": 2})
        greeted = await call_tool_task(client, "greet")
        broken = await call_tool_task(client, "break_down")
        states = [state.status async for state in greeted.changes()]
        assert text_of(await added) == "3"
        assert text_of(await greeted) == "Hello, Ada!"
        assert states[-1] == "completed"
        assert "input_required" in states
        with pytest.raises(TaskFailedError) as failed:
            await broken
    assert (failed.value.code, failed.value.message, failed.value.data) == (-32050, "the gears are stuck", {"gear": 7})


async def test_fastmcp_cancels_and_finds_again(peer_url: str) -> None:
    async with Client(resilient_http(peer_url), extensions=[TasksClient()]) as client:
        handle = await call_tool_task(client, "wait")
        again = await TaskHandle.resume(client, handle.task_id)
        assert (await again.cancel()).status == "cancelled"
        with pytest.raises(TaskCancelledError):
            await handle
        with pytest.raises(TaskGoneError):
            await TaskHandle.resume(client, "nobody-made-this")
