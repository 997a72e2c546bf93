"""What a client makes of servers of revision 2025-11-25 that are not ours."""

from __future__ import annotations

from typing import Any

import mcp_types as types
import pytest
from mcp.client import Client
from mcp.client.session import ClientRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import ErrorData

from mcp_celery.client import (
    ClientClosedError,
    InvalidTaskError,
    TaskError,
    TaskFailedError,
    TaskGoneError,
    TaskHandle,
    TasksClient,
    TaskUnreachableError,
    call_tool_task,
    get_prompt_task,
    list_tasks,
)
from mcp_celery.client.wire import LONGEST_MESSAGE
from mcp_celery.errors import LIMIT_EXCEEDED as BUSY
from tests.support.core_peer import JSON, CorePeer, core_task
from tests.support.scripted import text_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.anyio

DONE: JSON = {"content": [{"type": "text", "text": "done"}]}


@pytest.fixture
def peer() -> CorePeer:
    """Makes a task of each tool call; it is asked for every 50 ms."""
    return CorePeer(answers={"tools/call": {"task": core_task()}, "tasks/get": core_task()})


def client_of(peer: CorePeer, *, patience: float = 60, **options: Any) -> Client:
    return Client(peer.transport(), mode="legacy", extensions=[TasksClient(patience_seconds=patience)], **options)


async def test_the_request_asks_for_a_task(peer: CorePeer) -> None:
    async with client_of(peer) as client:
        handle = await call_tool_task(client, "work", {"size": 3}, ttl=5_000, meta={"vendor/key": 1})
        peer.answers |= {"tasks/get": core_task(status="completed"), "tasks/result": DONE}
        assert text_of(await handle.result(30)) == "done"
        assert (handle.state.ttl_ms, handle.state.poll_interval_ms) == (60_000, 50)
    (sent,) = (params for method, params in peer.asked if method == "tools/call")
    meta = sent.pop("_meta")
    assert sent == {"name": "work", "arguments": {"size": 3}, "task": {"ttl": 5_000}}
    assert len(meta.pop("mcp-celery/idempotency-key")) >= 22
    assert meta == {"vendor/key": 1}


async def test_a_server_that_names_endless_times_is_asked_for_the_result_upon_a_push(peer: CorePeer) -> None:
    endless = core_task(ttl=10**400, pollInterval=10**400)
    peer.answers |= {"tools/call": {"task": endless}, "tasks/get": endless | {"status": "completed"}}
    peer.answers["tasks/result"] = DONE
    async with client_of(peer) as client:
        handle = await call_tool_task(client, "work")
        await peer.push(endless | {"status": "completed"})
        assert text_of(await handle.result(30)) == "done"


async def test_a_task_that_has_ended_at_once_has_its_result(peer: CorePeer) -> None:
    peer.answers |= {"tools/call": {"task": core_task(status="completed")}, "tasks/result": DONE}
    async with client_of(peer) as client:
        assert text_of(await (await call_tool_task(client, "work")).result(30)) == "done"
    assert peer.count("tasks/get") == 0


async def test_a_server_may_ignore_what_asks_for_a_task(peer: CorePeer) -> None:
    peer.answers["tools/call"] = DONE
    async with client_of(peer) as client:
        handle = await call_tool_task(client, "work")
        assert (handle.task_id, text_of(await handle)) == ("", "done")
    assert peer.count("tools/call") == 1


async def test_a_tool_that_is_no_task_is_called_plainly(peer: CorePeer) -> None:
    peer.answers["tools/call"] = DONE
    async with client_of(peer) as client:
        for _ in range(2):
            assert (await call_tool_task(client, "plain")).task_id == ""
    called = [params for method, params in peer.asked if method == "tools/call"]
    assert [params["name"] for params in called] == ["plain"] * 2
    assert not any("task" in params for params in called)
    assert peer.count("tools/list") == 1


async def test_a_push_of_the_end_has_the_result_fetched(peer: CorePeer) -> None:
    slow = core_task(pollInterval=3_600_000)
    peer.answers |= {"tools/call": {"task": slow}, "tasks/get": slow, "tasks/result": DONE}
    async with client_of(peer) as client:
        handle = await call_tool_task(client, "work")
        await peer.push(slow | {"statusMessage": "half way", "lastUpdatedAt": "2026-07-28T10:00:01Z"})
        await eventually(lambda: handle.state.status_message == "half way", what="the push is heard")
        assert peer.count("tasks/get") == 0
        peer.answers["tasks/get"] = ended = slow | {"status": "completed"}
        await peer.push(ended)
        assert text_of(await handle.result(30)) == "done"


async def test_a_server_changes_no_task_of_another_server_with_the_same_extension(peer: CorePeer) -> None:
    slow = core_task(pollInterval=3_600_000)
    peer.answers["tools/call"] = {"task": slow}
    other = CorePeer(answers={"tools/call": {"task": slow}})
    tasks = TasksClient()
    async with (
        Client(peer.transport(), mode="legacy", extensions=[tasks]) as one,
        Client(other.transport(), mode="legacy", extensions=[tasks]) as two,
    ):
        handles = await call_tool_task(one, "work"), await call_tool_task(two, "work")
        await other.push(slow | {"statusMessage": "half way", "lastUpdatedAt": "2026-07-28T10:00:01Z"})
        await eventually(lambda: handles[1].state.status_message == "half way", what="the push is heard")
        assert handles[0].state.status_message is None


async def test_a_server_that_hints_without_end_is_asked_once_an_interval(peer: CorePeer) -> None:
    slow = core_task(pollInterval=3_600_000)
    peer.answers |= {"tools/call": {"task": slow}, "tasks/get": slow}
    async with client_of(peer) as client:
        handle = await call_tool_task(client, "work")
        for number in range(50):
            now = slow | {"statusMessage": f"{number}", "lastUpdatedAt": f"2026-07-28T10:01:{number:02}Z"}
            peer.answers["tasks/get"] = now
            await peer.push(now | {"status": "completed"})
            await peer.push(now)
            await eventually(lambda number=number: handle.state.status_message == f"{number}", what="both are heard")
        await eventually(lambda: peer.count("tasks/get"), what="the first hint is followed")
        assert peer.count("tasks/get") == 1


async def test_a_server_asks_on_a_result_that_is_held_open(peer: CorePeer) -> None:
    async def result(params: JSON) -> JSON:
        schema = {"type": "object", "properties": {"name": {"type": "string"}}}
        question = {"mode": "form", "message": "Who?", "requestedSchema": schema}
        related = {"_meta": {"io.modelcontextprotocol/related-task": params}}
        answer = await peer.request("elicitation/create", {**question, **related})
        peer.answers |= {"tasks/get": core_task(status="completed"), "tasks/result": DONE}
        return {"content": [{"type": "text", "text": answer["content"]["name"]}]}

    async def tell(_: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:
        assert params.message == "Who?"
        return types.ElicitResult(action="accept", content={"name": "Ada"})

    peer.answers |= {"tasks/get": core_task(status="input_required"), "tasks/result": result}
    async with client_of(peer, elicitation_callback=tell) as client:
        handle = await call_tool_task(client, "work")
        assert text_of(await handle.result(30)) == "done"
    assert peer.count("tasks/result") == 2


async def test_a_result_that_is_refused_while_a_task_asks_is_not_asked_for_in_a_loop(peer: CorePeer) -> None:
    peer.answers["tasks/get"] = core_task(status="input_required")
    async with client_of(peer) as client:
        handle = await call_tool_task(client, "work")
        await eventually(lambda: peer.count("tasks/result") >= 3, what="it is tried again")
        assert peer.count("tasks/result") <= peer.count("tasks/get")
        assert handle.state.status == "input_required"


async def test_a_tools_own_error_is_a_result(peer: CorePeer) -> None:
    peer.answers |= {"tasks/get": core_task(status="failed"), "tasks/result": {**DONE, "isError": True}}
    async with client_of(peer) as client:
        handle = await call_tool_task(client, "work")
        assert (await handle.result(30)).is_error
        assert handle.state.status == "completed"


async def test_a_failed_task_has_the_error_of_its_request(peer: CorePeer) -> None:
    stuck = ErrorData(code=-32050, message="stuck", data={"gear": 7})
    peer.answers |= {"tasks/get": core_task(status="failed"), "tasks/result": stuck}
    async with client_of(peer) as client:
        with pytest.raises(TaskFailedError, match="stuck") as failed:
            await (await call_tool_task(client, "work")).result(30)
    assert failed.value.error == stuck


async def test_a_lost_session_is_no_error_of_the_task(peer: CorePeer) -> None:
    lost = ErrorData(code=types.INTERNAL_ERROR, message="Server returned an error response")
    peer.answers |= {"tasks/get": core_task(status="failed"), "tasks/result": lost}
    async with client_of(peer, patience=0.2) as client:
        with pytest.raises(TaskUnreachableError):
            await (await call_tool_task(client, "work")).result(30)


@pytest.mark.parametrize(
    "fault",
    [
        ErrorData(code=types.INTERNAL_ERROR, message="The task store is unavailable; try again later"),
        ErrorData(code=BUSY, message="The server is busy", data={"retryAfterMs": 60_000}),
    ],
    ids=["store", "busy"],
)
async def test_a_fault_of_the_request_for_a_failed_tasks_result_does_not_stand_for_the_result(
    peer: CorePeer, fault: ErrorData
) -> None:
    slow = core_task(pollInterval=3_600_000)
    failed = slow | {"status": "failed", "statusMessage": "no such file"}
    peer.answers |= {"tools/call": {"task": slow}, "tasks/get": failed, "tasks/result": fault}
    async with client_of(peer) as client:
        handle = await call_tool_task(client, "work")
        with pytest.raises(MCPError, match=fault.message):
            await handle.status()
        peer.answers["tasks/result"] = {**DONE, "isError": True}
        await handle.status()
        assert (await handle.result(30)).is_error


@pytest.mark.parametrize("code", [types.INTERNAL_ERROR, BUSY])
async def test_an_error_that_the_failed_task_names_is_its_own(peer: CorePeer, code: int) -> None:
    long = "stuck" * LONGEST_MESSAGE
    peer.answers |= {
        "tasks/get": core_task(status="failed", statusMessage=long),
        "tasks/result": ErrorData(code=code, message=long),
    }
    async with client_of(peer) as client:
        with pytest.raises(TaskFailedError) as failed:
            await (await call_tool_task(client, "work")).result(30)
    assert (failed.value.code, failed.value.message) == (code, long)


async def test_a_failed_tasks_session_that_the_server_does_not_know_ends_the_handle_and_not_the_task(
    peer: CorePeer,
) -> None:
    unknown = ErrorData(code=types.INVALID_REQUEST, message="Session not found")
    peer.answers |= {"tasks/get": core_task(status="failed", statusMessage="no such file"), "tasks/result": unknown}
    async with client_of(peer) as client:
        handle = await call_tool_task(client, "work")
        with pytest.raises(ClientClosedError):
            await handle.result(30)
        assert handle.state.status == "working"


async def test_another_error_in_place_of_a_failed_tasks_result_is_given_up_in_the_end(peer: CorePeer) -> None:
    """Other servers may answer so for ever."""
    lost = ErrorData(code=types.INTERNAL_ERROR, message="task-1 has no result stored")
    peer.answers |= {"tasks/get": core_task(status="failed", statusMessage="stuck"), "tasks/result": lost}
    async with client_of(peer, patience=0.2) as client:
        with pytest.raises(TaskUnreachableError, match="task-1 has no result stored"):
            await (await call_tool_task(client, "work")).result(30)


async def test_a_refused_cancel_is_an_error_and_an_ended_task_is_returned(peer: CorePeer) -> None:
    refused = ErrorData(code=types.INVALID_PARAMS, message="no")
    peer.answers |= {"tasks/cancel": refused, "tasks/result": DONE}
    async with client_of(peer) as client:
        handle = await call_tool_task(client, "work")
        with pytest.raises(TaskError, match="the server does not cancel task task-1: no"):
            await handle.cancel()
        peer.answers["tasks/get"] = refused
        with pytest.raises(TaskGoneError):
            await handle.cancel()
        slow = core_task("task-2", pollInterval=3_600_000)
        peer.answers |= {"tools/call": {"task": slow}, "tasks/get": slow | {"status": "completed"}}
        assert (await (await call_tool_task(client, "work")).cancel()).status == "completed"


async def test_the_list_is_read_to_its_end(peer: CorePeer) -> None:
    async def page(params: JSON) -> JSON:
        second = params.get("cursor") == "next"
        return {"tasks": [core_task("b" if second else "a", "completed")]} | ({} if second else {"nextCursor": "next"})

    peer.answers["tasks/list"] = page
    async with client_of(peer) as client:
        assert [(task.task_id, task.status) for task in await list_tasks(client)] == [
            ("a", "completed"),
            ("b", "completed"),
        ]
        peer.answers["tasks/list"] = {"tasks": [], "nextCursor": "next"}
        with pytest.raises(InvalidTaskError, match="endless"):
            await list_tasks(client)
        peer.answers["tasks/list"] = {"tasks": [{"taskId": "a", "status": "strange"}]}
        with pytest.raises(InvalidTaskError, match="status"):
            await list_tasks(client)


async def test_a_capability_that_the_server_does_not_declare_is_named() -> None:
    async with client_of(CorePeer({"tasks": {}})) as client:
        with pytest.raises(TaskError, match=r"declares no capability tasks\.list"):
            await list_tasks(client)
    async with client_of(CorePeer({}, answers={"tools/call": DONE})) as client:
        assert text_of(await (await call_tool_task(client, "work"))) == "done"
        with pytest.raises(TaskError, match="by servers that declare tasks"):
            await get_prompt_task(client, "prompt")


async def test_an_earlier_revision_has_no_tasks(peer: CorePeer) -> None:
    peer.revision, peer.answers["tools/call"] = "2025-06-18", DONE
    async with client_of(peer) as client:
        assert (await call_tool_task(client, "work")).task_id == ""
        with pytest.raises(TaskError, match="this connection speaks 2025-06-18"):
            await TaskHandle.resume(client, "task-1")
    assert all("task" not in params for _, params in peer.asked)


async def test_a_refusal_of_the_request_is_raised(peer: CorePeer) -> None:
    peer.answers["tools/call"] = ErrorData(code=types.INVALID_PARAMS, message="size is no number")
    async with client_of(peer) as client:
        with pytest.raises(MCPError, match="size is no number"):
            await call_tool_task(client, "work")
    assert peer.count("tools/call") == 1
