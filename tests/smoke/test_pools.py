"""The whole of it on each pool, once: a store, a worker, a server over HTTP, and a client of each revision.

Part of ``make test-pythons``; the acceptance tests go into each of these matters.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from mcp_celery.embedded import EmbeddedStore
from tests.support.deployment import deployed
from tests.support.leaks import no_eternal_keys, no_processes_left
from tests.support.session import over_http
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

COUNTED = "counted to 3"


@pytest.fixture
def url(pool: str) -> Generator[str]:
    """A server whose jobs run on a worker of the pool."""
    with (
        tempfile.TemporaryDirectory(prefix="mcp-smoke-") as folder,
        no_processes_left(Path(folder).resolve()),
        EmbeddedStore.open(Path(folder) / "store") as store,
        no_eternal_keys(store.url),
        deployed(store.url, f"smoke-{pool}") as deployment,
        deployment.worker(pool),
    ):
        yield deployment.serve()


@pytest.mark.parametrize("pool", ["asyncio", "prefork", "threads"])
async def test_a_task_is_created_followed_read_and_cancelled_by_clients_of_both_revisions(pool: str, url: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("counting", steps=3))["taskId"]
        pushed = await soon(follow(wire, task_id), seconds=60)
        assert [one["status"] for one in pushed][:-1] == ["working"] * (len(pushed) - 1)
        assert len(pushed) > 1
        assert pushed[-1]["result"]["content"] == [{"type": "text", "text": COUNTED}]
        assert (await wire.get(task_id))["result"] == pushed[-1]["result"]

        endless = (await wire.create("counting", steps=10_000))["taskId"]
        async with wire.listen([endless]) as events:
            async for event in events:
                if event["params"].get("statusMessage", "").startswith("step"):
                    break
        assert (await wire.ask("tasks/cancel", {"taskId": endless})).result["resultType"] == "complete"
        assert [one["status"] for one in await soon(follow(wire, endless))][-1] == "cancelled"

    async with over_http(url) as session:
        task_id = (await session.create("counting", steps=3))["taskId"]
        told = [one["status"] for one in await session.ended(task_id)]
        assert told == ["working"] * (len(told) - 1) + ["completed"]
        assert len(told) > 1
        assert (await session.result(task_id)).result["content"] == [{"type": "text", "text": COUNTED}]

        endless = (await session.create("counting", steps=10_000))["taskId"]
        await eventually(lambda: session.statuses(endless), what="the task says something", seconds=60)
        assert (await session.ask("tasks/cancel", taskId=endless)).result["status"] == "cancelled"
        assert (await session.ended(endless))[-1]["status"] == "cancelled"
