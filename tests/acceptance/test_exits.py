"""Components that raise what would end the server in whose process they run: their request alone fails."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import TextContent

from tests.support.deployment import Deployment, deployed, is_listening, process, wait_until
from tests.support.locks import reserve_port
from tests.support.servers.odd import CHILD_EXITS, EXITS, NAMES, STARTS
from tests.support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

SERVER: Final = "tests.support.servers.odd"
FAULTS: Final = ("Exception in ASGI application", "500 Internal Server Error", "Shutting down")
"""What uvicorn logs of a request or a server that was ended."""


@pytest.fixture(scope="module")
def site(store_url: str) -> Iterator[Deployment]:
    with deployed(store_url, "exits", spec=f"{SERVER}:server") as found:
        yield found


@pytest.fixture(scope="module", params=["serve", "uvicorn", "stdio"])
def target(request: pytest.FixtureRequest, site: Deployment) -> Any:
    """Makes a transport to a server: one that we run over HTTP, one that a host runs, one on stdio."""
    if request.param == "stdio":
        return site.stdio
    url = site.serve() if request.param == "serve" else hosted(site)
    return lambda: url


def hosted(site: Deployment) -> str:
    port = reserve_port()
    argv = [sys.executable, "-m", "uvicorn", "--factory", f"{SERVER}:hosted", "--port", str(port), "--lifespan", "on"]
    child = site.stack.enter_context(process(argv, site.env(), site.folder / "hosted.log"))
    wait_until(lambda: is_listening(port) or child.poll() is not None, "uvicorn listens")
    return f"http://127.0.0.1:{port}/mcp"


@pytest.fixture(params=["2026-07-28", "legacy"])
def mode(request: pytest.FixtureRequest) -> Any:
    return request.param


async def require_reason(answer: Awaitable[object], kind: str) -> None:
    with pytest.raises(MCPError) as refused:
        await soon(answer)
    name = NAMES.get(kind, kind)
    expected = f"The component raised {name}, which would have ended its process"
    assert (refused.value.code, refused.value.message) == (-32603, expected)


async def require_work(client: Client) -> None:
    answered = await soon(client.call_tool("sized", {"size": 2}))
    assert answered.content == [TextContent(type="text", text="xx")]


@pytest.fixture(autouse=True)
def no_faults(site: Deployment) -> Iterator[None]:
    before = {name: len(text) for name, text in site.logs().items()}
    yield
    for name, text in site.logs().items():
        assert [fault for fault in FAULTS if fault in text[before.get(name, 0) :]] == [], name


@pytest.mark.shows("C18")
async def test_what_a_component_raises_fails_its_request_alone(target: Any, mode: Any) -> None:
    async with Client(target(), mode=mode) as client:
        for kind in EXITS:
            await require_reason(client.call_tool("leaves", {"kind": kind}), kind)
            await require_reason(client.call_tool("leaves_async", {"kind": kind}), kind)
        await require_reason(client.call_tool("cancels_itself"), "CancelledError")
        await require_reason(client.get_prompt("leaving_prompt"), "SystemExit")
        await require_reason(client.read_resource("odd://leaving"), "SystemExit")
        await require_work(client)


@pytest.mark.smoke
@pytest.mark.shows("C18")
async def test_what_the_asyncio_tasks_of_a_component_raise_fails_its_request_alone(target: Any, mode: Any) -> None:
    async with Client(target(), mode=mode) as client:
        for kind in CHILD_EXITS:
            for start in STARTS:
                await require_reason(client.call_tool("leaves_in_a_task", {"kind": kind, "start": start}), kind)
            await require_reason(client.call_tool("leaves_from_a_thread", {"kind": kind}), kind)
            await require_reason(client.call_tool("leaves_by_a_future", {"kind": kind}), kind)
            await soon(client.call_tool("leaves_later", {"kind": kind}))
        for start in STARTS:
            await require_reason(client.get_prompt("leaving_prompt_in_a_task", {"start": start}), "SystemExit")
            await require_reason(client.read_resource(f"odd://leaving/{start.replace(' ', '%20')}"), "SystemExit")
        await require_work(client)


async def test_a_request_is_cancelled_whatever_its_component_raises_then(
    target: Any, mode: Any, tmp_path: Path
) -> None:
    async with Client(target(), mode=mode) as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "leaves_when_cancelled", {"folder": str(tmp_path)})
            await eventually((tmp_path / "began").exists, what="the tool runs")
            group.cancel_scope.cancel()
        await eventually((tmp_path / "cancelled").exists, what="the tool is cancelled")
        await require_work(client)
