"""Revision 2025-11-25 on the wire: raw messages over Streamable HTTP, a real server, a real worker on each pool."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from tests.support.deployment import Deployment
from tests.support.session import RELATED, TERMINAL, Session, over_http
from tests.support.waiting import eventually
from tests.support.wire import EXTENSION, JSON, Wire

pytestmark = pytest.mark.anyio

NOT_FOUND = {"code": -32602, "message": "Task not found: it does not exist, has expired, or belongs to another caller"}

INVALID_SECONDS = (
    "Invalid arguments for tool 'slow_compute': seconds: "
    "Input should be a valid number, unable to parse string as a number"
)


@pytest.fixture
async def session(url: str) -> AsyncGenerator[Session]:
    async with over_http(url) as session:
        yield session


async def end_of(session: Session, task_id: str) -> JSON:
    """A task's end, waited for with ``tasks/result``."""
    await session.result(task_id)
    return await session.get(task_id)


# --- Negotiation


@pytest.mark.shows("L1")
async def test_the_capability_is_at_the_top_level(session: Session) -> None:
    capabilities = session.initialized["capabilities"]
    assert capabilities["tasks"] == {
        "list": {},
        "cancel": {},
        "requests": {"tools": {"call": {}}, "prompts": {"get": {}}, "resources": {"read": {}}},
    }
    assert capabilities["experimental"] == {"mcp-celery/tasks": {"idempotentCreation": True}}


@pytest.mark.shows("L1", "M26")
async def test_an_earlier_revision_has_no_tasks(url: str) -> None:
    async with over_http(url, revision="2025-06-18") as session:
        assert "tasks" not in session.initialized["capabilities"]
        assert (await session.call("greet", task={"ttl": 5}, name="Ada")).result["content"][0]["text"] == "Hello, Ada!"
        assert (await session.ask("tasks/get", taskId="x")).error["code"] == -32601
        assert all("execution" not in tool for tool in (await session.ask("tools/list")).result["tools"])


@pytest.mark.shows("L3")
async def test_each_tool_says_whether_it_runs_as_a_task(session: Session) -> None:
    tools = {tool["name"]: tool.get("execution") for tool in (await session.ask("tools/list")).result["tools"]}
    assert tools["slow_compute"] == {"taskSupport": "optional"}
    assert tools["failing_job"] == {"taskSupport": "required"}
    assert tools["greet"] is None


# --- Creation


@pytest.mark.shows("L4", "L5")
async def test_a_task_is_created_at_once_though_every_worker_is_busy(
    idle_deployment: Deployment, tmp_path: Path
) -> None:
    async with over_http(idle_deployment.serve()) as session:
        created = [await session.call("slow_compute", task={"ttl": 60_000}, seconds=0) for _ in range(5)]
        # There is no worker at all, so nothing but the server can have answered.
        assert {one.result["task"]["status"] for one in created} == {"working"}
        assert all(one.result.keys() == {"task"} for one in created)
        assert {(await session.get(one.result["task"]["taskId"]))["status"] for one in created} == {"working"}


@pytest.mark.shows("L6")
async def test_task_ids_are_long_random_and_the_servers_own(session: Session) -> None:
    asked = [await session.call("slow_compute", task={"ttl": 60_000, "taskId": "mine"}, seconds=0) for _ in range(20)]
    ids = {one.result["task"]["taskId"] for one in asked}
    assert len(ids) == 20
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", one) for one in ids)


@pytest.mark.shows("L10", "L11")
@pytest.mark.parametrize(
    ("task", "granted"),
    [({"ttl": 5_000}, 5_000), ({}, 3_600_000), ({"ttl": None}, 86_400_000), ({"ttl": 2**60}, 86_400_000)],
    ids=["asked", "silent", "unlimited", "too much"],
)
async def test_the_granted_ttl_is_reported_in_every_answer(session: Session, task: JSON, granted: int) -> None:
    created = (await session.call("counting", task=task, steps=2)).result["task"]
    pushed = await session.ended(created["taskId"])
    listed = next(one for one in await session.listed() if one["taskId"] == created["taskId"])
    assert {one["ttl"] for one in (created, *pushed, await session.get(created["taskId"]), listed)} == {granted}


@pytest.mark.shows("L10")
@pytest.mark.parametrize("task", [{"ttl": "soon"}, {"ttl": 0}, {"ttl": -5}, {"ttl": 1.5}, {"ttl": True}, [], "x"])
async def test_a_task_of_another_form_is_refused(session: Session, task: Any) -> None:
    before = len(await session.listed())
    assert (await session.call("slow_compute", task=task, seconds=0)).error["code"] == -32602
    assert len(await session.listed()) == before


@pytest.mark.shows("L4")
@pytest.mark.parametrize(
    ("method", "params", "text"),
    [
        (
            "tools/call",
            {"name": "slow_compute", "arguments": {"seconds": "private"}},
            INVALID_SECONDS,
        ),
        ("tools/call", {"name": "no_such_tool"}, "Unknown tool: no_such_tool"),
        ("prompts/get", {"name": "briefing"}, "Missing required arguments: topic"),
        (
            "prompts/get",
            {"name": "briefing", "arguments": {"topic": "tides", "other": "1"}},
            "Arguments that prompt 'briefing' does not declare: 'other'",
        ),
        ("prompts/get", {"name": "no_such_prompt"}, "Unknown prompt: no_such_prompt"),
        ("resources/read", {"uri": "fixture://nowhere"}, "Unknown resource: fixture://nowhere"),
    ],
)
async def test_a_request_that_cannot_run_is_refused_before_a_task_exists(
    session: Session, method: str, params: JSON, text: str
) -> None:
    error = (await session.ask(method, params, task={})).error
    assert error == {"code": -32602, "message": text}
    assert await session.listed() == []


@pytest.mark.shows("L13")
@pytest.mark.parametrize(
    ("method", "params", "component"),
    [
        ("tools/call", {"name": "greet", "arguments": {"name": "Ada"}}, "Tool 'greet'"),
        ("prompts/get", {"name": "plain_prompt"}, "Prompt 'plain_prompt'"),
        ("resources/read", {"uri": "fixture://readme"}, "Resource 'fixture://readme'"),
    ],
)
async def test_a_component_without_tasks_refuses_to_run_as_one(
    session: Session, method: str, params: JSON, component: str
) -> None:
    error = (await session.ask(method, params, task={})).error
    assert error == {"code": -32601, "message": f"{component} does not run as a task"}


@pytest.mark.shows("L14")
@pytest.mark.parametrize(
    ("method", "params"),
    [("tools/call", {"name": "failing_job"}), ("resources/read", {"uri": "fixture://archive"})],
)
async def test_a_component_that_runs_only_as_a_task_refuses_a_plain_call(
    session: Session, method: str, params: JSON
) -> None:
    error = (await session.ask(method, params)).error
    assert error["code"] == -32601
    assert "runs only as a task" in error["message"]


@pytest.mark.shows("L4")
async def test_the_private_method_behind_creation_does_not_exist_for_clients(url: str, session: Session) -> None:
    request: JSON = {"taskType": "tool", "request": {"name": "slow_compute", "task": {}}}
    assert (await session.ask("mcp_celery/createTask", request)).error["code"] == -32601
    async with Wire(url) as modern:
        assert (await modern.ask("mcp_celery/createTask", request)).error["code"] == -32601


@pytest.mark.shows("L42")
async def test_the_immediate_response_for_the_model_is_passed_on(session: Session) -> None:
    created = (await session.call("slow_roast", task={})).result
    assert created["_meta"] == {
        "io.modelcontextprotocol/model-immediate-response": "The oven is heating; ask again in an hour."
    }
    # What the tool itself says of its result stands beside the task it belongs to.
    result = (await session.result(created["task"]["taskId"])).result
    assert result["_meta"] == {"kitchen/oven": 7, RELATED: {"taskId": created["task"]["taskId"]}}


# --- Reading


@pytest.mark.shows("L7", "L8", "L9")
async def test_times_are_iso_8601_and_reading_changes_none(session: Session, tmp_path: Path) -> None:
    created = await session.create("wait_for_file", path=str(tmp_path / "go"))
    task_id = created["taskId"]
    seen = [created, *[await session.get(task_id) for _ in range(3)], (await session.listed())[0]]
    assert len({one["lastUpdatedAt"] for one in seen}) == 1
    (tmp_path / "go").touch()
    ended = [await end_of(session, task_id), *await session.ended(task_id), (await session.listed())[0]]
    assert {one["createdAt"] for one in [*seen, *ended]} == {created["createdAt"]}
    times = [datetime.fromisoformat(one["lastUpdatedAt"]) for one in (created, ended[0])]
    assert times[0] < times[1]
    assert times[0].tzinfo is not None


@pytest.mark.slow
@pytest.mark.shows("L12", "L17")
async def test_after_its_ttl_a_task_is_gone_with_everything(session: Session, deployment: Deployment) -> None:
    task_id = (await session.call("slow_compute", task={"ttl": 1_500}, seconds=0)).result["task"]["taskId"]
    await session.result(task_id)

    async def gone() -> bool:
        return "error" in (await session.ask("tasks/get", taskId=task_id)).message

    await eventually(gone, what="the task has expired")
    for method in ("tasks/get", "tasks/result", "tasks/cancel"):
        assert (await session.ask(method, taskId=task_id)).error == NOT_FOUND
    assert await session.listed() == []
    await eventually(
        lambda: not any(task_id in one for one in deployment.contents()), what="nothing is left of the task", seconds=60
    )


@pytest.mark.shows("L17", "L29")
@pytest.mark.parametrize("task_id", ["nobody-made-this", "", "a:b", "x" * 10_000, "ключ", "\x00", "../../etc"])
@pytest.mark.parametrize("method", ["tasks/get", "tasks/cancel", "tasks/result"])
async def test_missing_task_ids_of_every_form_get_the_same_answer(session: Session, method: str, task_id: str) -> None:
    assert (await session.ask(method, taskId=task_id)).error == NOT_FOUND


@pytest.mark.shows("L17", "L33")
async def test_no_caller_reaches_the_task_of_another(guarded_url: str) -> None:
    async with over_http(guarded_url, token="alice") as alice:
        task_id = (await alice.create("slow_compute", seconds=0))["taskId"]
        await alice.result(task_id)
        for other in ("bob", "alice-elsewhere", "machine"):
            async with over_http(guarded_url, token=other) as stranger:
                for method in ("tasks/get", "tasks/result", "tasks/cancel"):
                    assert (await stranger.ask(method, taskId=task_id)).error == NOT_FOUND
                assert task_id not in [one["taskId"] for one in await stranger.listed()]
        async with over_http(guarded_url, token="alice") as elsewhere:
            assert (await elsewhere.get(task_id))["status"] == "completed"
            assert task_id in [one["taskId"] for one in await elsewhere.listed()]


@pytest.mark.shows("L17", "L33")
async def test_users_of_one_client_are_distinguished_by_a_claim_alone(guarded_url: str) -> None:
    """Both tokens name their subject in ``claims["sub"]`` and leave ``subject`` empty."""
    async with over_http(guarded_url, token="carol") as carol, over_http(guarded_url, token="dave") as dave:
        task_id = (await carol.create("slow_compute", seconds=0))["taskId"]
        await carol.result(task_id)
        for method in ("tasks/get", "tasks/result", "tasks/cancel"):
            assert (await dave.ask(method, taskId=task_id)).error == NOT_FOUND
        assert task_id not in [one["taskId"] for one in await dave.listed()]


@pytest.mark.shows("L33")
async def test_a_session_belongs_to_the_subject_of_a_claim(guarded_url: str) -> None:
    usual = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
    async with httpx2.AsyncClient(headers=usual, timeout=30) as http:

        async def post(token: str, method: str, params: JSON, **headers: str) -> httpx2.Response:
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            return await http.post(guarded_url, json=body, headers={"authorization": f"Bearer {token}", **headers})

        session = {"mcp-session-id": (await post("carol", "initialize", hello)).headers["mcp-session-id"]}
        assert (await post("carol", "ping", {}, **session)).is_success
        assert not (await post("dave", "ping", {}, **session)).is_success


# --- Results


@pytest.mark.shows("L15", "L21", "L22", "L23")
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", {"name": "measured", "arguments": {"label": "heights", "values": [1, "2"]}}),
        ("tools/call", {"name": "slow_compute", "arguments": {"seconds": 0}}),
        ("tools/call", {"name": "protocol_error_job"}),
        ("tools/call", {"name": "refusing"}),
        ("prompts/get", {"name": "broken_prompt"}),
        ("resources/read", {"uri": "fixture://report"}),
        ("resources/read", {"uri": "fixture://pages/7"}),
    ],
)
async def test_the_result_is_what_the_request_would_have_returned(session: Session, method: str, params: JSON) -> None:
    plain = await session.ask(method, params)
    task_id = (await session.ask(method, params, task={})).result["task"]["taskId"]
    answer = await session.result(task_id)
    if "error" in plain.message:
        assert answer.error == plain.error
    else:
        assert answer.result["_meta"].pop(RELATED) == {"taskId": task_id}
        assert {"_meta": {}, **answer.result} == {"_meta": {}, **plain.result}


@pytest.mark.shows("L15", "L21")
async def test_a_prompt_and_a_resource_that_require_a_task_get_one(session: Session) -> None:
    prompt = (await session.ask("prompts/get", {"name": "briefing", "arguments": {"topic": "tides"}}, task={})).result
    answer = (await session.result(prompt["task"]["taskId"])).result
    assert answer["messages"][0]["content"]["text"] == "A plain briefing about tides, as a task"
    archive = (await session.ask("resources/read", {"uri": "fixture://archive"}, task={})).result
    assert (await session.result(archive["task"]["taskId"])).result["contents"][0]["blob"] == "AGFyY2hpdmU="


@pytest.mark.shows("L22")
async def test_a_json_rpc_error_fails_the_task_and_is_its_result(session: Session) -> None:
    task_id = (await session.create("protocol_error_job"))["taskId"]
    error = (await session.result(task_id)).error
    assert error == {"code": -32050, "message": "the gears are stuck", "data": {"gear": 7}}
    task = await session.get(task_id)
    assert (task["status"], task["statusMessage"]) == ("failed", "the gears are stuck")


@pytest.mark.shows("L23")
async def test_a_tool_error_fails_the_task_and_stays_readable(session: Session) -> None:
    task_id = (await session.create("refusing"))["taskId"]
    result = (await session.result(task_id)).result
    assert result["isError"] is True
    task = await session.get(task_id)
    assert (task["status"], task["statusMessage"]) == ("failed", result["content"][0]["text"])
    assert (await session.ended(task_id))[-1] == task


@pytest.mark.shows("L18", "L19")
async def test_a_result_is_waited_for_by_any_number_on_any_replica(
    session: Session, deployment: Deployment, tmp_path: Path
) -> None:
    async with over_http(deployment.serve()) as elsewhere:
        task_id = (await session.create("wait_for_file", path=str(tmp_path / "go")))["taskId"]
        waiting = [(one, await one.send("tasks/result", {"taskId": task_id})) for one in (session, session, elsewhere)]
        assert (await session.get(task_id))["status"] == "working"
        assert (await elsewhere.get(task_id))["status"] == "working"
        (tmp_path / "go").touch()
        answers = [(await one.answer(request)).result for one, request in waiting]
        late = (await elsewhere.result(task_id)).result
    assert [one["content"][0]["text"] for one in (*answers, late)] == ["released"] * 4


@pytest.mark.shows("L20")
async def test_a_client_that_hangs_up_while_it_waits_loses_nothing(url: str, tmp_path: Path) -> None:
    async with over_http(url) as gone:
        task_id = (await gone.create("wait_for_file", path=str(tmp_path / "go")))["taskId"]
        await gone.send("tasks/result", {"taskId": task_id})
        await gone.get(task_id)
    async with over_http(url) as back:
        assert (await back.get(task_id))["status"] == "working"
        waiting = await back.send("tasks/result", {"taskId": task_id})
        abandoned = await back.send("tasks/result", {"taskId": task_id})
        await back.tell("notifications/cancelled", {"requestId": abandoned, "reason": "changed my mind"})
        (tmp_path / "go").touch()
        assert (await back.answer(waiting)).result["content"][0]["text"] == "released"


@pytest.mark.shows("L24", "L25")
async def test_the_task_id_alone_names_the_task(session: Session) -> None:
    task_id = (await session.create("slow_compute", seconds=0))["taskId"]
    other = (await session.create("slow_compute", seconds=0))["taskId"]
    misleading = {RELATED: {"taskId": other}}
    got = (await session.ask("tasks/get", taskId=task_id, _meta=misleading)).result
    assert got["taskId"] == task_id
    shown = [got, *await session.listed(), *await session.ended(task_id), *await session.ended(other)]
    blocked = (await session.create("counting", steps=500, pause=0.05))["taskId"]
    cancelled = (await session.ask("tasks/cancel", taskId=blocked, _meta=misleading)).result
    assert cancelled["taskId"] == blocked
    assert all("_meta" not in one for one in [*shown, cancelled, (await session.ask("tasks/list")).result])


# --- Cancelling


@pytest.mark.shows("L26", "L30")
async def test_a_queued_task_is_cancelled_before_the_answer(idle_deployment: Deployment, tmp_path: Path) -> None:
    async with over_http(idle_deployment.serve()) as session:
        task_id = (await session.create("wait_for_file", path=str(tmp_path / "never")))["taskId"]
        waiting = await session.send("tasks/result", {"taskId": task_id})
        cancelled = (await session.ask("tasks/cancel", taskId=task_id)).result
        assert cancelled["status"] == "cancelled"
        assert (await session.get(task_id)) == cancelled
        assert (await session.answer(waiting)).error == {"code": -32800, "message": "Cancelled by the client"}
        assert (await session.result(task_id)).error["code"] == -32800
        assert [one["status"] for one in await session.ended(task_id)] == ["cancelled"]
        kept = (await session.create("slow_compute", seconds=0))["taskId"]
        with idle_deployment.worker("threads", concurrency=1):
            # One thread: had the first job run, it would never let the second one.
            assert (await end_of(session, kept))["status"] == "completed"
            assert (await session.get(task_id)) == cancelled


@pytest.mark.each_pool
@pytest.mark.shows("L28", "L30")
async def test_a_running_task_is_cancelled_for_good(session: Session) -> None:
    task_id = (await session.create("counting", steps=500, pause=0.05))["taskId"]
    await eventually(lambda: session.statuses(task_id), what="the task says something")
    assert (await session.ask("tasks/cancel", taskId=task_id)).result["status"] == "cancelled"
    assert (await session.result(task_id)).error["code"] == -32800
    # The pool works on.
    assert (await end_of(session, (await session.create("slow_compute", seconds=0))["taskId"]))["status"] == "completed"
    assert (await session.get(task_id))["status"] == "cancelled"
    pushed = await session.ended(task_id)
    assert [one["status"] in TERMINAL for one in pushed].index(True) == len(pushed) - 1


@pytest.mark.shows("L29")
async def test_a_task_that_has_ended_cannot_be_cancelled(session: Session, tmp_path: Path) -> None:
    ids = {
        "completed": (await session.create("slow_compute", seconds=0))["taskId"],
        "failed": (await session.create("refusing"))["taskId"],
        "cancelled": (await session.create("counting", steps=500, pause=0.05))["taskId"],
    }
    await session.ask("tasks/cancel", taskId=ids["cancelled"])
    for status, task_id in ids.items():
        ended = await end_of(session, task_id)
        assert ended["status"] == status
        error = (await session.ask("tasks/cancel", taskId=task_id)).error
        assert error == {"code": -32602, "message": f"Cannot cancel the task: it has ended as '{status}'"}
        assert await session.get(task_id) == ended


# --- Listing


@pytest.mark.slow
@pytest.mark.shows("L2", "L31", "L32", "L33")
async def test_250_tasks_are_listed_once_each_the_newest_first(url: str, session: Session) -> None:
    async def create(numbers: range) -> list[str]:
        return [(await session.create("slow_compute", seconds=0, label=str(one)))["taskId"] for one in numbers]

    ids = await create(range(121))
    first = (await session.ask("tasks/list")).result
    ids += await create(range(121, 250))
    listed = [one["taskId"] for one in await session.listed()]
    assert sorted(listed) == sorted(ids)
    created = [one["createdAt"] for one in await session.listed()]
    assert created == sorted(created, reverse=True)
    # A cursor from before goes on where it stopped, whatever has come since.
    rest = (await session.ask("tasks/list", cursor=first["nextCursor"])).result
    seen: list[str] = [one["taskId"] for one in (*first["tasks"], *rest["tasks"])]
    assert set(seen) <= set(ids[:121])
    assert len(seen) == len(set(seen)) == 100
    await session.result(ids[-1])
    async with over_http(url) as other:
        assert await other.listed() == []
        assert (await other.get(ids[0]))["taskId"] == ids[0]


@pytest.mark.shows("L32")
@pytest.mark.parametrize("cursor", ["", "1", "bogus", "x" * 10_000, "ключ"])
async def test_a_cursor_that_the_server_did_not_make_is_refused(session: Session, cursor: str) -> None:
    assert (await session.ask("tasks/list", cursor=cursor)).error["code"] == -32602


# --- Push


@pytest.mark.each_pool
@pytest.mark.shows("L35", "L38")
async def test_the_session_gets_every_change_in_order_and_nothing_after_the_end(session: Session) -> None:
    params = {"name": "counting", "arguments": {"steps": 4}, "task": {}, "_meta": {"progressToken": "mine"}}
    task_id = (await session.ask("tools/call", params)).result["task"]["taskId"]
    pushed = await session.ended(task_id)
    with anyio.move_on_after(0.5):  # nothing may come
        await eventually(lambda: len(session.statuses(task_id)) > len(pushed), seconds=5)
    assert session.statuses(task_id) == pushed
    assert pushed[-1] == await session.get(task_id)
    assert [one["status"] for one in pushed] == ["working"] * (len(pushed) - 1) + ["completed"]
    # Only the newest progress is pushed: a step may be left out.
    assert pushed[0]["statusMessage"] in {f"step {step} ({step}/4)" for step in (1, 2, 3, 4)}
    updated = [one["lastUpdatedAt"] for one in pushed]
    assert updated == sorted(updated)
    progress = [one["params"] for one in session.heard if one["method"] == "notifications/progress"]
    values = [one["progress"] for one in progress]
    assert values == sorted(set(values))
    assert values[-1] == 4
    assert all(one["progressToken"] == "mine" and one["total"] == 4 for one in progress)
    assert all(one["_meta"] == {RELATED: {"taskId": task_id}} for one in progress)
    assert session.heard[-1]["method"] == "notifications/tasks/status"


@pytest.mark.shows("L18", "L36", "C13")
async def test_two_replicas_and_two_workers_are_one_server(
    session: Session, deployment: Deployment, tmp_path: Path
) -> None:
    async with over_http(deployment.serve()) as elsewhere:
        with deployment.worker("threads", concurrency=3):
            ids = [(await session.create("wait_for_file", path=str(tmp_path / "go")))["taskId"] for _ in range(4)]
            waiting = [await elsewhere.send("tasks/result", {"taskId": one}) for one in ids]
            await elsewhere.ask("tasks/cancel", taskId=ids[0])
            (tmp_path / "go").touch()
            ends = [(await session.ended(one))[-1]["status"] for one in ids]
            answers = [(await elsewhere.answer(one)).message for one in waiting]
        assert ends == ["cancelled", "completed", "completed", "completed"]
        assert ["error" in one for one in answers] == [True, False, False, False]
        assert elsewhere.heard == []


@pytest.mark.shows("L37")
async def test_a_client_without_a_stream_completes_by_polling(url: str) -> None:
    """Raw POSTs: no GET stream is ever opened, so nothing can be pushed."""
    sent = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}

    async def post(http: httpx2.AsyncClient, method: str, params: JSON) -> httpx2.Response:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return await http.post(url, json=body, headers=sent)

    async with httpx2.AsyncClient(timeout=30) as http:
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
        answer = await post(http, "initialize", hello)
        sent["mcp-session-id"] = answer.headers["mcp-session-id"]
        await http.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=sent)
        call = {"name": "counting", "arguments": {"steps": 3}, "task": {}}
        created = (await post(http, "tools/call", call)).text
        (task_id,) = re.findall(r'"taskId": ?"([^"]+)"', created)

        async def completed() -> bool:
            return '"completed"' in (await post(http, "tasks/get", {"taskId": task_id})).text

        await eventually(completed, what="polling sees the end")
        assert "counted to 3" in (await post(http, "tasks/result", {"taskId": task_id})).text


@pytest.mark.shows("C12", "L36")
async def test_a_session_that_is_gone_is_followed_no_more(url: str, deployment: Deployment, tmp_path: Path) -> None:
    ids: list[str] = []
    for _ in range(5):
        async with over_http(url) as session:
            ids.append((await session.create("wait_for_file", path=str(tmp_path / "go")))["taskId"])
    await eventually(lambda: not deployment.channels(), what="no channel has a subscriber")
    (tmp_path / "go").touch()
    async with over_http(url) as back:
        for task_id in ids:
            assert (await end_of(back, task_id))["status"] == "completed"


# --- Both eras in one process


@pytest.mark.shows("M26", "M6", "M18")
async def test_one_process_serves_both_eras_and_each_reads_the_others_tasks(guarded_url: str) -> None:
    async with (
        over_http(guarded_url, token="alice", capabilities={"extensions": {EXTENSION: {}}}) as core,
        Wire(guarded_url, token="alice") as modern,
    ):
        # Declaring the extension means nothing here: without `task` the call runs in the foreground.
        assert (await core.call("slow_compute", seconds=0)).result["content"][0]["text"] == "done"
        made_here = (await core.create("measured", label="a", values=[1]))["taskId"]
        made_there = (await modern.create("measured", label="b", values=[2]))["taskId"]

        result = (await core.result(made_there)).result
        assert result["structuredContent"] == {"label": "b", "values": [2]}
        assert "resultType" not in result
        assert {made_here, made_there} <= {one["taskId"] for one in await core.listed()}
        assert (await core.get(made_there)).keys() >= {"ttl", "pollInterval"}

        await core.result(made_here)
        seen = await modern.get(made_here)
        assert seen["result"]["structuredContent"] == {"label": "a", "values": [1]}
        assert seen["result"]["resultType"] == "complete"
        assert "ttl" not in seen
        for method in ("tasks/result", "tasks/list"):
            assert (await modern.ask(method, {"taskId": made_here})).error["code"] == -32601
        answer = await modern.ask("prompts/get", {"name": "plain_prompt", "task": {"ttl": 5}})
        assert answer.result["messages"][0]["content"]["text"] == "plain"


@pytest.mark.shows("M26", "M11", "L23")
async def test_a_tool_error_is_failed_in_one_era_and_completed_in_the_other(guarded_url: str) -> None:
    async with over_http(guarded_url, token="alice") as core, Wire(guarded_url, token="alice") as modern:
        task_id = (await core.create("refusing"))["taskId"]
        assert (await end_of(core, task_id))["status"] == "failed"
        seen = await modern.get(task_id)
    assert (seen["status"], seen["result"]["isError"]) == ("completed", True)


@pytest.mark.shows("M26")
async def test_the_capability_of_this_era_alone_gives_no_tasks_of_the_other(url: str) -> None:
    async with Wire(url, extension=False) as modern:
        assert (await modern.ask("tools/call", {"name": "failing_job", "task": {}})).error["code"] == -32021
        plain = await modern.ask("tools/call", {"name": "slow_compute", "arguments": {"seconds": 0}, "task": {}})
    assert plain.result["resultType"] == "complete"


@pytest.mark.shows("C2")
async def test_celerys_id_does_not_show_the_arguments_of_a_resource(idle_deployment: Deployment) -> None:
    async with over_http(idle_deployment.serve()) as session:
        for uri in ("fixture://pages/4711", "fixture://archive"):
            await session.ask("resources/read", {"uri": uri}, task={})
    queue: Any = idle_deployment.redis.lrange(f"mcp.{idle_deployment.namespace}", 0, -1)
    archive, page = (json.loads(message)["headers"] for message in queue)
    assert re.fullmatch(r"anon:[\w-]{43}:resource:~~[0-9a-f]{32}", page["id"])
    assert "4711" not in str(page)
    assert archive["id"].endswith(":resource:fixture~3A~2F~2Farchive")
