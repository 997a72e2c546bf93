"""Processes that this package starts collect garbage less often, unless a setting says otherwise."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from mcp.client import Client

from mcp_celery.client import TasksClient, call_tool_task
from mcp_celery.embedded import EmbeddedStore
from tests.support.deployment import deployed
from tests.support.waiting import soon

pytestmark = pytest.mark.anyio


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("pool", "setting", "found"),
    [("asyncio", "tuned", "tuned"), ("prefork", "tuned", "tuned"), ("threads", "default", "default")],
)
async def test_servers_workers_and_their_children_are_tuned_where_the_setting_says_so(
    pool: str, setting: str, found: str
) -> None:
    settings = {"MCP_CELERY_GC": setting}
    with (
        tempfile.TemporaryDirectory(prefix="mcp-acc-") as folder,
        EmbeddedStore.open(Path(folder) / "store") as store,
        deployed(store.url, "collector", spec="tests.support.servers.collector:server", settings=settings) as place,
        place.worker(pool),
    ):
        url = place.serve()
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(Client(url, extensions=[TasksClient()]))
            plain = [await stack.enter_async_context(Client(one)) for one in (url, place.stdio())]
            handle = await call_tool_task(tasks, "collector", {})
            results = [await soon(handle.result()), *[await soon(one.call_tool("collector", {})) for one in plain]]
    assert [one.structured_content for one in results] == [{"result": found}] * 3
