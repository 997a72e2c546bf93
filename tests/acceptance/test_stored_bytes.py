"""No client can fill the store: what is kept of requests is bounded for each caller and for all of them together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any, Final

import pytest

from mcp_celery.embedded import EmbeddedStore
from tests.support.deployment import Deployment, deployed
from tests.support.nodes import short_folder
from tests.support.session import over_http
from tests.support.wire import JSON, Wire

pytestmark = pytest.mark.anyio

LIMIT_EXCEEDED: Final = -32005
INVALID_PARAMS: Final = -32602
MEMORY_BYTES: Final = 64_000_000


@pytest.fixture
def small() -> Iterator[Deployment]:
    """A Redis of 64 MB, and no worker: what is submitted stays open."""
    with (
        short_folder() as folder,
        EmbeddedStore.open(folder / "store") as store,
        deployed(store.url, f"small-{os.urandom(4).hex()}") as found,
    ):
        redis: Any = found.redis
        redis.config_set("maxmemory", MEMORY_BYTES)
        yield found


def somewhere() -> dict[str, str]:
    """An address that nobody else has."""
    return {"x-forwarded-for": f"2001:db8:{os.urandom(2).hex()}:{os.urandom(2).hex()}::1"}


async def errors_of(url: str, *, callers: int, calls: int, size: int) -> list[JSON]:
    """What is answered instead of a task to callers that send large arguments as fast as they can."""

    async def flood() -> list[JSON]:
        async with Wire(url, headers=somewhere()) as wire:
            answers = [await wire.call("wait_for_file", path="x" * size) for _ in range(calls)]
            return [answer.error for answer in answers if "error" in answer.message]

    return [error for errors in await asyncio.gather(*(flood() for _ in range(callers))) for error in errors]


async def test_a_store_that_is_nearly_full_refuses_tasks_and_serves_the_rest(small: Deployment) -> None:
    url = small.serve()
    async with Wire(url, headers=somewhere()) as wire:
        mine = (await wire.create("wait_for_file", path="/nowhere"))["taskId"]
        errors = await errors_of(url, callers=4, calls=12, size=2_000_000)
        assert errors
        assert {(error["code"], error["data"]["limit"]) for error in errors} == {(LIMIT_EXCEEDED, "store_memory")}
        assert {error["data"]["most"] for error in errors} == {90}
        assert all(error["data"]["retryAfterMs"] > 0 for error in errors)
        assert (await wire.get(mine))["status"] == "working"
        assert (await wire.ask("tasks/cancel", {"taskId": mine})).result
    redis: Any = small.redis
    assert redis.info("memory")["used_memory"] < MEMORY_BYTES


async def test_one_caller_uses_up_its_own_share_alone(small: Deployment) -> None:
    url = small.serve(MCP_CELERY_MAX_STORED_BYTES_PER_SCOPE="1000000")
    errors = await errors_of(url, callers=1, calls=4, size=300_000)
    assert [(error["code"], error["data"]["limit"]) for error in errors] == [(LIMIT_EXCEEDED, "stored_bytes")]
    async with Wire(url, headers=somewhere()) as wire:
        await wire.create("wait_for_file", path="/nowhere")


async def test_arguments_that_no_component_declares_are_not_kept(small: Deployment) -> None:
    url, junk = small.serve(), "undeclared-" + os.urandom(8).hex()
    async with Wire(url) as wire, over_http(url) as session:
        await wire.create("wait_for_file", path="/declared", other=junk, **{junk: 1})
        await session.create("wait_for_file", path="/declared", other=junk)
    kept = small.contents()
    assert any("/declared" in one for one in kept)
    assert not any(junk in one for one in kept)


async def test_arguments_that_are_too_large_are_named_with_both_numbers(small: Deployment) -> None:
    url, path = small.serve(MCP_CELERY_MAX_ARGUMENT_BYTES="1000"), "x" * 2_000
    async with Wire(url) as wire, over_http(url) as session:
        for error in (
            (await wire.call("wait_for_file", path=path)).error,
            (await session.call("wait_for_file", task={}, path=path)).error,
        ):
            assert error["code"] == INVALID_PARAMS
            assert "this server takes 1000 (MCP_CELERY_MAX_ARGUMENT_BYTES)" in error["message"]
