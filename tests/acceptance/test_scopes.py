"""OAuth scopes of a component: to use it in either revision, as a task or not, and for what another token may see."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.session import over_http
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

INVALID_REQUEST = -32600
NOT_FOUND = -32602


def is_refused(error: dict[str, Any]) -> bool:
    assert error["message"] == "Tool 'needs_write' needs a token with the scopes use, write"
    return (error["code"], error["data"]) == (INVALID_REQUEST, {"requiredScopes": ["use", "write"]})


async def test_a_token_without_the_scopes_cannot_use_the_component_in_any_way(guarded_url: str) -> None:
    async with Wire(guarded_url, token="alice") as wire, Wire(guarded_url, token="alice", extension=False) as plain:
        assert is_refused((await wire.call("needs_write")).error)
        assert is_refused((await plain.call("needs_write")).error)
    async with over_http(guarded_url, token="alice") as session:
        assert is_refused((await session.call("needs_write", task={})).error)
        assert is_refused((await session.call("needs_write")).error)


async def test_a_caller_without_a_token_is_refused_too(url: str) -> None:
    async with Wire(url) as wire:
        assert is_refused((await wire.call("needs_write")).error)


async def test_a_task_is_found_only_with_a_token_that_has_the_scopes(guarded_url: str) -> None:
    async with Wire(guarded_url, token="alice-who-writes") as writer, Wire(guarded_url, token="alice") as reader:
        task_id = (await writer.create("needs_write"))["taskId"]
        assert (await follow(writer, task_id))[-1]["status"] == "completed"
        for method in ("tasks/get", "tasks/cancel", "tasks/update"):
            answer = await reader.ask(method, {"taskId": task_id, "inputResponses": {}})
            assert answer.error["code"] == NOT_FOUND
        async with reader.listen([task_id]) as events:
            acknowledged = await anext(events)
        assert acknowledged["params"]["notifications"]["taskIds"] == []
        assert (await writer.get(task_id))["status"] == "completed"
    async with over_http(guarded_url, token="alice") as session:
        listed = (await session.ask("tasks/list")).result["tasks"]
        assert task_id not in {one["taskId"] for one in listed}
    async with over_http(guarded_url, token="alice-who-writes") as session:
        task_id = (await session.create("needs_write"))["taskId"]
        listed = (await session.ask("tasks/list")).result["tasks"]
        assert task_id in {one["taskId"] for one in listed}
        result = (await session.ask("tasks/result", taskId=task_id)).result
        assert result["content"][0]["text"] == "written"
