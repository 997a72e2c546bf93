"""Questions of tasks on the wire of revision 2026-07-28: asked, answered in parts and in races, after restarts."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from celery import Celery
from mcp.client import Client

from mcp_celery import Settings, TaskServer
from mcp_celery.client import TasksClient
from mcp_celery.common.redis_translation import celery_url
from mcp_celery.embedded import EmbeddedStore
from tests.support.deployment import Deployment, deployed
from tests.support.schemas import assert_valid
from tests.support.servers import asking
from tests.support.waiting import PATIENCE_SECONDS, eventually
from tests.support.wire import JSON, Wire, follow

pytestmark = pytest.mark.anyio

SPEC = "tests.support.servers.asking:server"
ABLE: JSON = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}


@pytest.fixture(scope="module")
def deployment(store_url: str, pool: str) -> Iterator[Deployment]:
    """A store, a worker of each pool, and a server whose tools ask."""
    with deployed(store_url, f"asking-{pool}", spec=SPEC) as found, found.worker(pool):
        yield found


@pytest.fixture(scope="module")
def url(deployment: Deployment) -> str:
    return deployment.serve(MCP_CELERY_DEFAULT_TTL_MS="60000", MCP_CELERY_MAX_INPUT_BYTES="2000")


@pytest.fixture(scope="module")
def replica_url(deployment: Deployment) -> str:
    return deployment.serve()


@pytest.fixture
async def wire(url: str) -> Any:
    async with Wire(url, capabilities=ABLE) as wire:
        yield wire


def named(name: str) -> JSON:
    return {"action": "accept", "content": {"name": name}}


async def asked(wire: Wire, task_id: str, count: int = 1) -> JSON:
    """Wait until a task has that many open questions."""

    async def open_now() -> JSON:
        task = await wire.get(task_id)
        assert task["status"] in ("working", "input_required"), task
        return task if len(task.get("inputRequests", {})) == count else {}

    return await eventually(open_now, what=f"{count} questions")


async def ended(wire: Wire, task_id: str) -> JSON:
    with anyio.fail_after(PATIENCE_SECONDS):
        return (await follow(wire, task_id))[-1]


def text_of(task: JSON) -> str:
    assert task["status"] == "completed", task
    return str(task["result"]["content"][0]["text"])


# --- While it runs


@pytest.mark.each_pool
@pytest.mark.shows("M10", "M14", "M25")
async def test_a_task_that_asks_shows_its_question_and_continues_when_answered(wire: Wire) -> None:
    created = await wire.create("greet")
    task = await asked(wire, created["taskId"])
    assert_valid("GetTaskResult", task)
    assert task["status"] == "input_required"
    ((key, request),) = task["inputRequests"].items()
    assert request["method"] == "elicitation/create"
    assert request["params"]["message"] == "Your name?"
    acknowledged = (await wire.update(task["taskId"], {key: named("Ada")})).result
    assert {name: value for name, value in acknowledged.items() if name != "_meta"} == {"resultType": "complete"}
    assert text_of(await ended(wire, task["taskId"])) == "Hello, Ada!"


@pytest.mark.shows("M14")
async def test_a_partial_update_leaves_the_rest(wire: Wire) -> None:
    task_id = (await wire.create("ask_three", label="q"))["taskId"]
    requests = (await asked(wire, task_id, 3))["inputRequests"]
    first, second, third = sorted(requests, key=lambda key: str(requests[key]["params"]["message"]))
    await wire.update(task_id, {second: named("b"), "nobody-asked": named("x")})
    partial = await wire.get(task_id)
    assert (partial["status"], partial["inputRequests"].keys()) == ("input_required", {first, third})
    await wire.update(task_id, {second: named("another"), first: named("a"), third: named("c")})
    assert text_of(await ended(wire, task_id)) == "a b c"


@pytest.mark.shows("M14")
async def test_updates_that_answer_nothing_are_acknowledged_and_change_nothing(wire: Wire) -> None:
    task_id = (await wire.create("greet"))["taskId"]
    before = await asked(wire, task_id)
    for responses in ({}, {"nobody-asked": named("x")}, {"nobody-asked": "nonsense"}):
        assert (await wire.update(task_id, responses)).result["resultType"] == "complete"
    assert await wire.get(task_id) == before
    await wire.ask("tasks/cancel", {"taskId": task_id})


@pytest.mark.shows("M13")
@pytest.mark.parametrize(("tool", "rounds"), [("one_after_the_other", 3), ("journey", 2)])
async def test_a_key_is_never_used_again(wire: Wire, tmp_path: Path, tool: str, rounds: int) -> None:
    arguments = {"notes": str(tmp_path / "notes")} if tool == "journey" else {}
    task_id = (await wire.create(tool, **arguments))["taskId"]
    used: list[str] = []
    for _ in range(rounds):
        (key,) = (await asked(wire, task_id))["inputRequests"]
        # An answer to an earlier question, sent again, is none to this one.
        await wire.update(task_id, dict.fromkeys(used, named("late")))
        assert (await wire.get(task_id))["status"] == "input_required"
        await wire.update(task_id, {key: named("yes")})
        used.append(key)
        await eventually(lambda: gone(wire, task_id, used[-1]), what="the question is off the list")
    assert len(set(used)) == rounds
    assert (await ended(wire, task_id))["status"] == "completed"


async def gone(wire: Wire, task_id: str, key: str) -> bool:
    return key not in (await wire.get(task_id)).get("inputRequests", {})


@pytest.mark.shows("M20")
async def test_a_question_is_pushed_as_tasks_get_shows_it(wire: Wire) -> None:
    task_id = (await wire.create("greet"))["taskId"]
    statuses: list[str] = []
    async with wire.listen([task_id]) as events:
        async for event in events:
            if event["method"] != "notifications/tasks":
                continue
            params = {name: value for name, value in event["params"].items() if name != "_meta"}
            statuses.append(params["status"])
            if params["status"] == "input_required":
                shown = await wire.get(task_id)
                assert params == {name: shown[name] for name in params}
                assert_valid("TaskStatusNotification", {**event, "jsonrpc": "2.0"})
                await wire.update(task_id, dict.fromkeys(params["inputRequests"], named("Ada")))
            if params["status"] == "completed":
                break
    assert statuses[-1] == "completed"
    assert "input_required" in statuses


@pytest.mark.parametrize(
    "answer",
    [{"action": "accept", "content": {}}, {"action": "accept", "content": {"name": 7}}, {"action": "maybe"}, "Ada"],
)
async def test_a_wrong_answer_is_refused_and_the_question_stays(wire: Wire, answer: object) -> None:
    task_id = (await wire.create("greet"))["taskId"]
    before = await asked(wire, task_id)
    (key,) = before["inputRequests"]
    error = (await wire.update(task_id, {key: answer})).error
    assert error["code"] == -32602
    assert key in error["message"]
    assert await wire.get(task_id) == before
    await wire.update(task_id, {key: named("Ada")})
    assert text_of(await ended(wire, task_id)) == "Hello, Ada!"


async def test_answers_above_the_size_limit_are_refused(wire: Wire) -> None:
    task_id = (await wire.create("greet"))["taskId"]
    (key,) = (await asked(wire, task_id))["inputRequests"]
    error = (await wire.update(task_id, {key: named("x" * 3_000)})).error
    assert (error["code"], "2000 bytes" in error["message"]) == (-32602, True)
    await wire.ask("tasks/cancel", {"taskId": task_id})


async def test_without_elicitation_the_task_fails_and_the_error_says_why(url: str) -> None:
    async with Wire(url) as wire:
        final = await ended(wire, (await wire.create("greet"))["taskId"])
        assert_valid("GetTaskResult", await wire.get(final["taskId"]))
    assert final["status"] == "failed"
    assert final["error"]["code"] == -32021
    assert final["error"]["data"] == {"requiredCapabilities": {"elicitation": {"form": {}}}}


@pytest.mark.shows("M24")
async def test_a_wait_for_input_may_lengthen_the_time_to_live(wire: Wire) -> None:
    created = await wire.create("greet")
    waiting = await asked(wire, created["taskId"])
    assert waiting["ttlMs"] > created["ttlMs"]
    assert waiting["createdAt"] == created["createdAt"]
    await wire.ask("tasks/cancel", {"taskId": created["taskId"]})


@pytest.mark.each_pool
@pytest.mark.shows("M17")
@pytest.mark.parametrize(("tool", "questions"), [("greet", 1), ("three_at_once", 3)])
async def test_a_waiting_task_that_is_cancelled_ignores_later_answers(wire: Wire, tool: str, questions: int) -> None:
    task_id = (await wire.create(tool, **({"label": "x"} if questions == 3 else {})))["taskId"]
    keys = (await asked(wire, task_id, questions))["inputRequests"]
    await wire.ask("tasks/cancel", {"taskId": task_id})
    assert (await wire.get(task_id))["status"] == "cancelled"
    assert (await wire.update(task_id, dict.fromkeys(keys, named("late")))).result["resultType"] == "complete"
    cancelled = await wire.get(task_id)
    assert cancelled["status"] == "cancelled"
    assert "inputRequests" not in cancelled


# --- Between its jobs


@pytest.mark.shows("M15")
async def test_racing_updates_on_two_replicas_run_the_next_leg_once(
    wire: Wire, replica_url: str, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    task_id = (await wire.create("journey", notes=str(notes)))["taskId"]
    async with Wire(replica_url, capabilities=ABLE) as other:
        cities = [f"city-{n}" for n in range(8)]
        for _ in range(2):
            (key,) = (await asked(wire, task_id))["inputRequests"]
            racing = [(wire, other)[n % 2].update(task_id, {key: named(city)}) for n, city in enumerate(cities)]
            assert {answer.result["resultType"] for answer in await asyncio.gather(*racing)} == {"complete"}
        final = await ended(wire, task_id)
    first, second = text_of(final).split(", ")
    assert {first, second} <= set(cities)
    assert notes.read_text().split("\n")[:-1] == ["begun", "first", f"then {first}"]


@pytest.mark.shows("M13", "M14")
async def test_a_task_outlives_every_process_between_its_legs(pool: str, tmp_path: Path) -> None:
    """The store too: what is known is on its disk."""
    notes, folder = tmp_path / "notes", Path(tempfile.mkdtemp(prefix="mcp-legs-"))
    namespace = f"legs-{os.urandom(4).hex()}"

    class Life(ExitStack):
        """Everything that runs, from the store on."""

        def begin(self) -> Wire:
            store = self.enter_context(EmbeddedStore.open(folder / "store"))
            deployment = self.enter_context(deployed(store.url, namespace, spec=SPEC))
            self.enter_context(deployment.worker(pool))
            return Wire(deployment.serve(), capabilities=ABLE)

    try:
        with Life() as life:
            async with life.begin() as wire:
                task_id = (await wire.create("journey", notes=str(notes)))["taskId"]
                (first,) = (await asked(wire, task_id))["inputRequests"]
        with Life() as life:
            async with life.begin() as wire:
                await wire.update(task_id, {first: named("Rome")})
                (second,) = (await asked(wire, task_id))["inputRequests"]
        with Life() as life:
            async with life.begin() as wire:
                await wire.update(task_id, {second: named("Athens")})
                assert text_of(await ended(wire, task_id)) == "Rome, Athens"
        assert notes.read_text().split("\n")[:-1] == ["begun", "first", "then Rome"]
    finally:
        shutil.rmtree(folder)


async def test_the_state_of_a_tool_never_reaches_its_caller(wire: Wire, tmp_path: Path) -> None:
    created = await wire.create("journey", notes=str(tmp_path / "notes"))
    waiting = await asked(wire, created["taskId"])
    assert "requestState" not in waiting
    assert "first" not in str(waiting)
    await wire.ask("tasks/cancel", {"taskId": created["taskId"]})


# --- Before it is a task


@pytest.mark.shows("M21")
async def test_a_tool_asks_first_and_becomes_a_task_with_the_answers(wire: Wire) -> None:
    first = (await wire.call("introduce")).result
    assert first["resultType"] == "input_required"
    assert "taskId" not in first
    assert first["inputRequests"]["name"]["params"]["message"] == "Your name?"
    assert "secret" not in first["requestState"]
    retry = {"inputResponses": {"name": named("Ada")}, "requestState": first["requestState"]}
    created = (await wire.ask("tools/call", {"name": "introduce", "arguments": {}, **retry})).result
    assert_valid("CreateTaskResult", created)
    assert not {"requestState", "inputRequests"} & created.keys()
    assert text_of(await ended(wire, created["taskId"])) == "Hello, Ada: secret plan, in a job"


@pytest.mark.shows("M4", "M21")
async def test_a_tool_that_runs_only_as_a_task_asks_no_client_without_tasks(url: str) -> None:
    async with Wire(url, extension=False, capabilities=ABLE) as wire:
        assert (await wire.call("introduce")).error["code"] == -32021


@pytest.mark.shows("M21")
async def test_what_resolvers_ask_first_is_answered_before_the_task(wire: Wire) -> None:
    """The resolvers run in the foreground with the answers of each round, and in the worker with all of them."""
    first = (await wire.call("resolved_before")).result
    assert first["resultType"] == "input_required"
    assert "taskId" not in first
    ((key, request),) = first["inputRequests"].items()
    assert request["params"]["message"] == "Your name?"
    retry = {"inputResponses": {key: named("Ada")}, "requestState": first["requestState"]}
    created = (await wire.ask("tools/call", {"name": "resolved_before", "arguments": {}, **retry})).result
    assert created["resultType"] == "task"
    assert not {"requestState", "inputRequests"} & created.keys()
    # What it needs after that, it asks as a task.
    waiting = await asked(wire, created["taskId"])
    ((key, request),) = waiting["inputRequests"].items()
    assert request["params"]["message"] == "Which size, Ada?"
    await wire.update(created["taskId"], {key: {"action": "accept", "content": {"size": 7}}})
    assert text_of(await ended(wire, created["taskId"])) == "Ada 7"


@pytest.mark.shows("M21")
async def test_a_forged_state_creates_no_task(wire: Wire) -> None:
    retry = {"inputResponses": {"x": named("Ada")}, "requestState": "forged"}
    answer = await wire.ask("tools/call", {"name": "resolved_before", "arguments": {}, **retry})
    assert answer.error["code"] == -32602


async def test_a_client_without_the_extension_answers_in_the_foreground(url: str, tmp_path: Path) -> None:
    async with Wire(url, extension=False, capabilities=ABLE) as wire:
        first = (await wire.call("journey", notes=str(tmp_path / "notes"))).result
    assert first["resultType"] == "input_required"
    assert first["inputRequests"].keys() == {"where"}


# --- The SDK's own client, over every transport


@pytest.fixture(params=["http", "stdio", "memory"])
def target(request: pytest.FixtureRequest, deployment: Deployment, url: str) -> Callable[[], Any]:
    if request.param == "http":
        return lambda: url
    if request.param == "memory":
        return lambda: in_memory(deployment)
    return deployment.stdio


def in_memory(deployment: Deployment) -> TaskServer:
    settings = Settings.load(redis_url=deployment.store_url, namespace=deployment.namespace)
    address = celery_url(deployment.store_url)
    app = Celery("in-memory", broker=address, backend=address, set_as_current=False)
    return asking.build(settings=settings, celery=app)


@pytest.mark.shows("M14")
@pytest.mark.parametrize("tool", ["ask_three", "three_at_once"])
async def test_questions_are_answered_over_every_transport(target: Callable[[], Any], tool: str) -> None:
    asked: list[str] = []

    async def elicit(context: object, params: types.ElicitRequestParams) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"name": params.message})

    async with Client(target(), extensions=[TasksClient()], elicitation_callback=elicit) as client:
        result = await client.call_tool(tool, {"label": "q"})
    assert sorted(asked) == ["q 0?", "q 1?", "q 2?"]
    assert result.content == [types.TextContent(type="text", text="q 0? q 1? q 2?")]
