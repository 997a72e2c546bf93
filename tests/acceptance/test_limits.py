"""How much a caller may ask, on the wire of both revisions: real clients, servers and a worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import pytest

from tests.support.deployment import Deployment, deployed
from tests.support.session import over_http
from tests.support.waiting import eventually
from tests.support.wire import JSON, Answer, Wire, follow

pytestmark = [pytest.mark.anyio, pytest.mark.shows("C15")]

LIMIT_EXCEEDED: Final = -32005
MOST_TASKS: Final = 2
MOST_LOOKUPS: Final = 3
TOO_MANY_TASKS: Final = {
    "code": LIMIT_EXCEEDED,
    "message": "You have as many open tasks as this server allows (2); wait for one to end, or cancel one",
    "data": {"limit": "open_tasks", "most": MOST_TASKS},
}


@dataclass(frozen=True)
class Site:
    """A server for anybody and one for bearers, with a worker for both."""

    deployment: Deployment
    open_url: str
    guarded_url: str


@pytest.fixture(scope="module")
def site(store_url: str) -> Iterator[Site]:
    settings = {
        "MCP_CELERY_MAX_TASKS_PER_SCOPE": str(MOST_TASKS),
        "MCP_CELERY_MAX_FAILED_LOOKUPS_PER_MINUTE": str(MOST_LOOKUPS),
    }
    with deployed(store_url, "limits", settings=settings) as deployment, deployment.worker("asyncio", 20):
        yield Site(deployment, deployment.serve(), deployment.serve("guarded"))


@pytest.fixture
def released(tmp_path: Path) -> Iterator[Path]:
    """Jobs that wait for this file end with the test at the latest."""
    path = tmp_path / "released"
    yield path
    path.touch()


@asynccontextmanager
async def clean(wire: Wire) -> AsyncGenerator[Wire]:
    """A client whose tasks are over when it goes: the tests share callers."""
    made: list[str] = []
    ask = wire.ask

    async def noting(method: str, params: JSON | None = None, **headers: str) -> Answer:
        answer = await ask(method, params, **headers)
        if task_id := answer.message.get("result", {}).get("taskId"):
            made.append(task_id)
        return answer

    wire.ask = noting
    async with wire:
        yield wire
        for task_id in made:
            await ask("tasks/cancel", {"taskId": task_id})


def at(address: str) -> dict[str, str]:
    """What a proxy on this machine says of its client."""
    return {"x-forwarded-for": address}


def somewhere() -> dict[str, str]:
    """An address that nobody else has."""
    return at(f"2001:db8:{os.urandom(2).hex()}:{os.urandom(2).hex()}::1")


# --- Open tasks


async def fill(wire: Wire, released: Path) -> list[JSON]:
    """Make as many tasks as may be, which stay open."""
    made = [await wire.create("wait_for_file", path=str(released)) for _ in range(MOST_TASKS)]
    assert (await wire.call("wait_for_file", path=str(released))).error == TOO_MANY_TASKS
    return made


async def has_room(wire: Wire) -> bool:
    answer = await wire.call("short_lived")
    assert "result" in answer.message or answer.error == TOO_MANY_TASKS
    return "result" in answer.message


async def test_one_task_too_many_is_refused_until_another_has_ended(site: Site, released: Path) -> None:
    async with clean(Wire(site.guarded_url, token="alice")) as alice, clean(Wire(site.guarded_url, token="bob")) as bob:
        first, _ = await fill(alice, released)
        await fill(bob, released)
        await alice.ask("tasks/cancel", {"taskId": first["taskId"]})
        second = await alice.create("wait_for_file", path=str(released))
        assert (await alice.call("failing_job")).error == TOO_MANY_TASKS
        await asyncio.to_thread(released.touch)
        assert (await follow(alice, second["taskId"]))[-1]["status"] == "completed"
        failing = await alice.create("protocol_error_job")
        assert (await follow(alice, failing["taskId"]))[-1]["status"] == "failed"
        await fill(alice, released.with_name("never"))


async def test_a_task_that_expires_makes_room(site: Site, released: Path) -> None:
    async with clean(Wire(site.guarded_url, token="machine")) as wire:
        await fill(wire, released)
    async with over_http(site.guarded_url, token="machine") as session:
        for _ in range(MOST_TASKS):
            answer = await session.call("wait_for_file", task={"ttl": 300}, path=str(released))
            assert "task" in answer.result
        assert (await session.call("refusing", task={})).error == TOO_MANY_TASKS

        async def taken() -> bool:
            return "result" in (await session.call("refusing", task={})).message

        await eventually(taken, what="room after their ttl")


async def test_a_task_above_the_limit_does_not_run_in_the_foreground_but_plain_calls_do(
    site: Site, released: Path
) -> None:
    async with clean(Wire(site.guarded_url, token="alice")) as wire:
        await fill(wire, released)
        assert (await wire.call("slow_compute", seconds=0)).error == TOO_MANY_TASKS
        async with Wire(site.guarded_url, token="alice", extension=False) as plain:
            answer = await plain.call("slow_compute", seconds=0)
            assert answer.result["content"][0]["text"] == "done"


async def test_prompts_and_resources_of_the_other_revision_count_too(site: Site, released: Path) -> None:
    async with over_http(site.open_url) as session, over_http(site.open_url) as other:
        made = [await session.create("wait_for_file", path=str(released)) for _ in range(MOST_TASKS)]
        for method, params in (
            ("tools/call", {"name": "slow_compute", "arguments": {"seconds": 0}}),
            ("prompts/get", {"name": "briefing", "arguments": {"topic": "tea"}}),
            ("resources/read", {"uri": "fixture://report"}),
            ("resources/read", {"uri": "fixture://pages/3"}),
        ):
            assert (await session.ask(method, {**params, "task": {}})).error == TOO_MANY_TASKS
        assert len(await session.listed()) == MOST_TASKS
        await other.create("slow_compute", seconds=0)  # of another session
        await session.ask("tasks/cancel", taskId=made[0]["taskId"])
        answer = await session.ask("prompts/get", {"name": "briefing", "arguments": {"topic": "tea"}, "task": {}})
        assert answer.result["task"]["status"] == "working"


async def test_both_revisions_count_together(site: Site, released: Path) -> None:
    async with (
        clean(Wire(site.guarded_url, token="alice")) as wire,
        over_http(site.guarded_url, token="alice") as session,
    ):
        await fill(wire, released)
        assert (await session.call("slow_compute", task={}, seconds=0)).error == TOO_MANY_TASKS


async def test_what_a_job_submits_counts_as_its_callers(site: Site, released: Path) -> None:
    async with clean(Wire(site.guarded_url, token="alice-elsewhere")) as wire:

        async def delegated() -> JSON:
            return (await follow(wire, (await wire.create("delegating"))["taskId"]))[-1]["result"]

        made = (await delegated())["content"][0]["text"]
        assert (await follow(wire, made))[-1]["status"] == "completed"
        await wire.create("wait_for_file", path=str(released))
        assert (await delegated())["isError"]


async def test_anonymous_callers_without_a_session_are_distinguished_by_their_address(
    site: Site, released: Path
) -> None:
    async with (
        clean(Wire(site.open_url, headers=at("192.0.2.1"))) as one,
        clean(Wire(site.open_url, headers=at("192.0.2.2"))) as two,
        clean(Wire(site.open_url, headers=at("2001:db8:0:1::1"))) as six,
        clean(Wire(site.open_url, headers=at("2001:db8:0:1:2:3:4:5"))) as six_again,
    ):
        await fill(one, released)
        await fill(two, released)
        await fill(six, released)
        assert (await six_again.call("slow_compute", seconds=0)).error == TOO_MANY_TASKS


# --- The queue


async def test_a_full_queue_refuses_in_both_revisions_and_nothing_is_made(idle_deployment: Deployment) -> None:
    url = idle_deployment.serve(MCP_CELERY_MAX_QUEUE_LENGTH="2")
    async with Wire(url) as wire, over_http(url) as session:
        await wire.create("slow_compute", seconds=0)
        await session.create("slow_compute", seconds=0)
        keys = idle_deployment.our_keys()
        expected = {
            "code": LIMIT_EXCEEDED,
            "message": "The task queue is full: as many tasks wait for a worker as this server allows (2); "
            "no task was created, try again later",
            "data": {"limit": "queue_length", "most": 2, "retryAfterMs": 1000},
        }
        assert (await wire.call("slow_compute", seconds=0)).error == expected
        assert (await session.call("slow_compute", task={}, seconds=0)).error == expected
        assert (await session.call("slow_compute", seconds=0)).result["content"][0]["text"] == "done"
        assert idle_deployment.our_keys() == keys


# --- Streams


async def test_one_stream_too_many_is_refused_until_another_is_closed(idle_deployment: Deployment) -> None:
    url = idle_deployment.serve(MCP_CELERY_MAX_STREAMS_PER_SCOPE="2")
    too_many = {
        "code": LIMIT_EXCEEDED,
        "message": "You have as many subscription streams open as this server allows (2); close one, or name more "
        "tasks in one",
        "data": {"limit": "open_streams", "most": 2},
    }

    async def refusal_of(wire: Wire) -> JSON | None:
        """The error of a stream that is refused; None where it is opened, and closed again."""
        try:
            async with wire.listen([mine]) as events:
                assert (await anext(events))["method"] == "notifications/subscriptions/acknowledged"
        except AssertionError as refused:
            (message,) = refused.args
            return cast(JSON, message)["error"]
        return None

    async with Wire(url, headers=somewhere()) as wire, Wire(url, headers=somewhere()) as other:
        mine = (await wire.create("slow_compute", seconds=0))["taskId"]
        async with wire.listen([mine]) as first:
            await anext(first)
            async with wire.listen(["gone"]) as second:
                await anext(second)
                assert await refusal_of(wire) == too_many
                assert await refusal_of(other) is None
                assert (await wire.get(mine))["taskId"] == mine

            async def has_room() -> bool:
                return await refusal_of(wire) is None

            await eventually(has_room, what="a place when a stream is closed")


# --- Failed look-ups


def is_lookup_refusal(error: JSON) -> bool:
    data: Any = error.get("data", {})
    return (error["code"], data.get("limit"), data.get("most")) == (LIMIT_EXCEEDED, "failed_lookups", MOST_LOOKUPS)


async def test_only_the_caller_with_too_many_failed_lookups_is_refused(site: Site) -> None:
    async with Wire(site.guarded_url, token="mallory") as wire:
        mine = (await wire.create("slow_compute", seconds=0))["taskId"]
        for method in ("tasks/get", "tasks/cancel", "tasks/update"):
            await wire.get(mine)
            answer = await wire.ask(method, {"taskId": f"gone-{method[6:]}", "inputResponses": {}})
            assert answer.error["code"] == -32602
        for method in ("tasks/get", "tasks/cancel", "tasks/update"):
            answer = await wire.ask(method, {"taskId": mine, "inputResponses": {}})
            assert is_lookup_refusal(answer.error)
            assert 0 < answer.error["data"]["retryAfterMs"] <= 60_000
            assert "tasks that are not there" in answer.error["message"]
        with pytest.raises(AssertionError, match="failed_lookups"):
            async with wire.listen([mine]):
                pass
    async with Wire(site.guarded_url, token="alice") as alice:
        assert (await alice.ask("tasks/get", {"taskId": mine})).error["code"] == -32602


async def test_callers_behind_one_address_do_not_lock_each_other_out(site: Site) -> None:
    async with clean(Wire(site.open_url, headers=somewhere())) as wire:
        mine = (await wire.create("slow_compute", seconds=0))["taskId"]
        for _ in range(MOST_LOOKUPS):
            assert (await wire.ask("tasks/get", {"taskId": "gone"})).error["code"] == -32602
        assert is_lookup_refusal((await wire.ask("tasks/get", {"taskId": "gone"})).error)
        assert (await wire.get(mine))["taskId"] == mine
        assert (await follow(wire, mine))[-1]["status"] == "completed"


async def test_a_session_of_the_other_revision_locks_out_no_other(site: Site) -> None:
    async with over_http(site.open_url) as session, over_http(site.open_url) as other:
        mine = (await session.create("slow_compute", seconds=0))["taskId"]
        for method in ("tasks/get", "tasks/cancel", "tasks/result"):
            assert (await session.ask(method, taskId="gone")).error["code"] == -32602
        for method in ("tasks/get", "tasks/cancel", "tasks/result"):
            assert is_lookup_refusal((await session.ask(method, taskId=mine)).error)
        assert (await other.get(mine))["taskId"] == mine


async def test_failed_lookups_are_counted_over_all_replicas(site: Site) -> None:
    whereabouts, replica = somewhere(), site.deployment.serve()
    async with Wire(site.open_url, headers=whereabouts) as here, Wire(replica, headers=whereabouts) as there:
        for number in range(MOST_LOOKUPS):
            wire = (here, there)[number % 2]
            assert (await wire.ask("tasks/get", {"taskId": "gone"})).error["code"] == -32602
        assert is_lookup_refusal((await here.ask("tasks/get", {"taskId": "gone"})).error)

        async def refused_there() -> bool:
            return is_lookup_refusal((await there.ask("tasks/get", {"taskId": "gone"})).error)

        await eventually(refused_there, what="the other replica learns of it")
