"""What a handle gives: results, states, changes, callbacks, cancelling, answering, finding again."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import mcp_types as types
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from mcp_celery.client import (
    AnswerError,
    ClientClosedError,
    InvalidTaskError,
    TaskCancelledError,
    TaskEndedError,
    TaskError,
    TaskFailedError,
    TaskGoneError,
    TaskHandle,
    TasksClient,
    TaskState,
    TaskTimeoutError,
    call_tool_task,
)
from mcp_celery.client.handle import follower_of
from tests.support.scripted import Scripted, elicitation, text_of
from tests.support.waiting import eventually
from tests.support.wire import JSON
from tests.unit.client.conftest import Connect

pytestmark = pytest.mark.anyio


async def test_a_handle_is_awaited_like_the_call_itself(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        assert handle.task_id == "task-1"
        assert handle.state.status == "working"
        await scripted.listened("task-1")
        scripted.complete("task-1", "worth the wait")
        assert text_of(await handle) == "worth the wait"
    assert text_of(await handle) == text_of(await handle.result()) == "worth the wait"
    assert (await handle.status()).status == "completed"
    assert [state.status async for state in handle.changes()] == ["completed"]
    assert (await handle.cancel()).status == "completed"
    assert scripted.count("tasks/cancel") == 0


async def test_a_tool_error_is_a_result(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.set("task-1", "completed", result={"content": [], "isError": True})
        assert (await handle).is_error


async def test_a_failed_task_raises_the_error_of_its_request(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.set("task-1", "failed", error={"code": -32050, "message": "stuck", "data": {"gear": 7}})
        with pytest.raises(TaskFailedError) as failed:
            await handle
    error = failed.value
    assert isinstance(error, MCPError)
    assert (error.code, error.message, error.data, error.task_id) == (-32050, "stuck", {"gear": 7}, "task-1")
    assert str(error) == "task task-1 failed: stuck (JSON-RPC error -32050)"


async def test_a_failed_task_without_an_error_says_what_it_can(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.set("task-1", "failed", statusMessage="no idea", error="not an object")
        with pytest.raises(TaskFailedError, match=r"no idea \(JSON-RPC error -32603\)"):
            await handle


async def test_awaiting_the_result_of_a_cancelled_task_raises(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        assert (await handle.cancel()).status == "cancelled"
        with pytest.raises(TaskCancelledError, match="task task-1 was cancelled: by request"):
            await handle
        with pytest.raises(TaskCancelledError):
            await handle.wait("completed")
        assert (await handle.wait()).status == "cancelled"


async def test_a_wait_for_a_status_ends_at_that_status_at_its_timeout_or_at_the_end(
    scripted: Scripted, connect: Connect
) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        assert (await handle.wait("working")).status == "working"
        with pytest.raises(TaskTimeoutError, match=r"task task-1 has not become completed within 0\.01 s; it goes on"):
            await handle.wait("completed", timeout=0.01)
        with pytest.raises(TimeoutError):
            await handle.result(timeout=0.01)
        await scripted.listened("task-1")
        scripted.complete("task-1")
        assert (await handle.wait("completed")).status == "completed"
        with pytest.raises(TaskEndedError, match="ended as completed, and will not become input_required"):
            await handle.wait("input_required")
        with pytest.raises(TaskEndedError, match="no longer takes answers"):
            await handle.answer({"sure": {"action": "cancel"}})


async def test_changes_come_in_order_and_end_with_the_task(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        seen: list[str | None] = []
        async for state in handle.changes():
            seen.append(state.status_message or state.status)
            if len(seen) <= 3:
                progress = {"mcp-celery/progress": {"progress": len(seen), "total": 3}}
                scripted.set("task-1", "working", statusMessage=f"step {len(seen)}", _meta=progress)
            elif not state.is_final:
                assert state.progress
                assert (state.progress.progress, state.progress.total) == (3, 3)
                scripted.complete("task-1")
    assert seen == ["working", "step 1", "step 2", "step 3", "completed"]


async def test_a_slow_reader_sees_the_newest_state(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        changes = handle.changes()
        assert (await anext(changes)).status == "working"
        await scripted.listened("task-1")
        for step in range(500):
            scripted.set("task-1", "working", statusMessage=f"step {step}")
            await asyncio.sleep(0)
        await eventually(lambda: handle.state.status_message == "step 499")
        assert (await anext(changes)).status_message == "step 499"
        await changes.aclose()


async def test_callbacks_get_changes_and_their_errors_stay_inside(
    scripted: Scripted, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    heard: dict[str, list[str]] = {"sync": [], "async": [], "late": []}
    heard_late = anyio.Event()

    async def listen(state: TaskState) -> None:
        await anyio.lowlevel.checkpoint()
        heard["async"].append(state.status)
        if len(heard["async"]) == 1:
            raise ValueError("async callback")

    async def listen_late(state: TaskState) -> None:
        heard["late"].append(state.status)
        heard_late.set()

    def broken(_: TaskState) -> None:
        raise ValueError("sync callback")

    async with connect() as client:
        handle = await call_tool_task(client, "work")
        handle.on_status_change(broken)
        handle.on_status_change(lambda state: heard["sync"].append(state.status))
        handle.on_status_change(listen)
        await scripted.listened("task-1")
        scripted.ask("task-1", sure={"method": "x"})
        await eventually(lambda: len(heard["async"]) == 1)
        scripted.complete("task-1")
        await eventually(lambda: len(heard["async"]) == 2)
        handle.on_status_change(lambda state: heard["sync"].append(f"{state.status} already"))
        handle.on_status_change(listen_late)
        with anyio.fail_after(10):
            await heard_late.wait()
    assert heard["sync"] == ["input_required", "completed", "completed already"]
    assert heard["async"] == ["input_required", "completed"]
    assert heard["late"] == ["completed"]
    raised = [str(record.exc_info[1]) for record in caplog.records if record.exc_info and record.exc_info[1]]
    assert raised == ["sync callback", "async callback", "sync callback"]


async def test_a_callback_gets_the_last_state_of_an_ended_task_after_the_client_was_closed(
    scripted: Scripted, connect: Connect
) -> None:
    states: list[TaskState] = []

    async def listen(state: TaskState) -> None:
        states.append(state)

    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.complete("task-1")
        await handle
    handle.on_status_change(states.append)
    assert [state.status for state in states] == ["completed"]
    with pytest.raises(ClientClosedError):
        handle.on_status_change(listen)  # nothing would run it


async def test_a_task_without_a_handle_is_followed_only_for_its_callbacks(scripted: Scripted, connect: Connect) -> None:
    scripted.poll_interval_ms = 50
    scripted.pushes = False
    ended = anyio.Event()
    async with connect() as client:
        forgotten = await call_tool_task(client, "work")
        watched = await call_tool_task(client, "work")
        watched.on_status_change(lambda state: ended.set() if state.is_final else None)
        await eventually(lambda: scripted.count("tasks/get") >= 2)
        del forgotten, watched
        gc.collect()
        await eventually(lambda: [one.get("taskId") for _, one in scripted.asked[-5:]] == ["task-2"] * 5)
        scripted.complete("task-2")
        with anyio.fail_after(10):
            await ended.wait()


async def test_a_call_that_makes_no_task_has_its_result_at_once(scripted: Scripted, connect: Connect) -> None:
    scripted.makes_tasks = False
    states: list[TaskState] = []

    async def listen(state: TaskState) -> None:
        states.append(state)

    async with connect() as client:
        handle = await call_tool_task(client, "work", {"answer": "at once"})
        handle.on_status_change(listen)
        await eventually(lambda: states, what="the async callback is called")
    handle.on_status_change(states.append)
    assert handle.task_id == ""
    assert text_of(await handle) == "at once"
    assert (await handle.wait()).status == (await handle.cancel()).status == "completed"
    assert [state.status for state in states] == ["completed", "completed"]


async def test_a_task_is_found_again_by_its_id(scripted: Scripted, connect: Connect) -> None:
    task_id = scripted.make()
    async with connect() as client:
        handle = await TaskHandle.resume(client, task_id)
        again = await TaskHandle.resume(client, task_id)
        await scripted.listened(task_id)
        scripted.complete(task_id)
        assert text_of(await handle) == text_of(await again) == "done"
        assert text_of(await (await TaskHandle.resume(client, task_id))) == "done"
        with pytest.raises(TaskGoneError, match="task nobody-made-this does not exist, has expired, or belongs"):
            await TaskHandle.resume(client, "nobody-made-this")


async def test_outside_the_clients_context_errors_are_clear(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        waiting = asyncio.create_task(handle.result())
        changing = asyncio.create_task(anext(handle.changes()))
        await changing
    with pytest.raises(ClientClosedError, match=r"use TaskHandle\.resume"):
        await waiting
    for refused in (handle.result(), handle.status(), handle.cancel(), handle.wait("completed"), handle.answer({})):
        with pytest.raises(ClientClosedError):
            await refused
    with pytest.raises(ClientClosedError):
        handle.on_status_change(print)
    assert handle.state.status == "working"
    with pytest.raises(RuntimeError, match="within an async context manager"):
        await call_tool_task(client, "work")


async def test_a_client_without_the_extension_gets_an_error_that_names_it(scripted: Scripted) -> None:
    async with Client(scripted.server) as client:
        with pytest.raises(ValueError, match=r"extensions=\[TasksClient\(\)\]"):
            await call_tool_task(client, "work")


async def test_a_connection_of_the_earlier_revision_gets_an_error_that_names_it(scripted: Scripted) -> None:
    async with Client(scripted.server, extensions=[TasksClient()], mode="legacy") as client:
        with pytest.raises(TaskError, match="this connection speaks 2025-11-25"):
            await TaskHandle.resume(client, scripted.make())


@asynccontextmanager
async def with_another(scripted: Scripted) -> AsyncGenerator[tuple[Scripted, TaskHandle, TaskHandle]]:
    """A second server, and a task of each, ``task-1`` on both, followed by one extension."""
    other, tasks = Scripted(), TasksClient()
    async with (
        Client(scripted.server, extensions=[tasks]) as one,
        Client(other.server, extensions=[tasks]) as two,
    ):
        handles = await call_tool_task(one, "work"), await call_tool_task(two, "work")
        await scripted.listened("task-1")
        await other.listened("task-1")
        yield other, *handles


async def test_one_extension_serves_several_clients(scripted: Scripted) -> None:
    async with with_another(scripted) as (other, *handles):
        scripted.complete("task-1")
        other.complete("task-1")
        assert [text_of(await handle) for handle in handles] == ["done", "done"]


async def test_a_server_changes_no_task_of_another_server_with_the_same_extension(scripted: Scripted) -> None:
    """Both number their tasks in the same way."""
    async with with_another(scripted) as (other, *handles):
        other.complete("task-1", "the other's")
        assert text_of(await handles[1]) == "the other's"
        assert handles[0].state.status == "working"
        scripted.complete("task-1", "its own")
        assert text_of(await handles[0]) == "its own"


async def test_an_abandoned_call_cancels_its_task(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        with anyio.move_on_after(60) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "work")
                await scripted.made()
                await scripted.listened("task-1")
                scope.cancel()
        assert scripted.tasks["task-1"]["status"] == "cancelled"


def share(scripted: Scripted) -> None:
    """Answer two calls with one task, as if both have the same idempotency key."""
    task: JSON = {"resultType": "task", **scripted.tasks[scripted.make()]}
    scripted.faults["tools/call"] = [task, task]


async def test_a_task_that_two_calls_share_is_cancelled_when_both_are_abandoned(
    scripted: Scripted, connect: Connect
) -> None:
    share(scripted)
    scopes = [anyio.CancelScope() for _ in range(2)]
    ended = [anyio.Event() for _ in range(2)]
    async with connect() as client:

        async def call(number: int) -> None:
            with scopes[number]:
                await client.call_tool("work")
            ended[number].set()

        async with anyio.create_task_group() as group:
            group.start_soon(call, 0)
            await scripted.listened("task-1")
            group.start_soon(call, 1)
            (task,) = follower_of(client)._tasks.values()  # pyright: ignore[reportPrivateUsage]
            await eventually(lambda: len(task.holders) == 2, what="both wait")
            for number, cancelled in enumerate((0, 1)):
                scopes[number].cancel()
                await ended[number].wait()
                assert scripted.count("tasks/cancel") == cancelled


async def test_an_abandoned_call_does_not_cancel_the_task_of_a_handle(scripted: Scripted, connect: Connect) -> None:
    share(scripted)
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        with anyio.move_on_after(60) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "work")
                await eventually(lambda: scripted.count("tools/call") == 2)
                await scripted.listened("task-1")
                scope.cancel()
        assert (await handle.status()).status == "working"


async def test_a_call_made_by_a_callback_of_a_call_is_its_own(scripted: Scripted) -> None:
    """A question that comes before there is a task is answered with the help of another tool."""
    client: Client

    async def ask_a_tool(context: object, params: object) -> types.ElicitResult:
        nested = asyncio.create_task(client.call_tool("work"))
        await scripted.made()
        await scripted.listened("task-1")
        scripted.complete("task-1", "Ada")
        return types.ElicitResult(action="accept", content={"name": text_of(await nested)})

    question = elicitation("Your name?")
    scripted.faults["tools/call"] = [{"resultType": "input_required", "inputRequests": {"name": question}}]
    async with Client(scripted.server, extensions=[TasksClient()], elicitation_callback=ask_a_tool) as client:
        handle = await call_tool_task(client, "work")
    assert handle.task_id == "task-2"
    method, params = next((method, params) for method, params in reversed(scripted.asked) if method == "tools/call")
    assert params["inputResponses"]["name"]["content"] == {"name": "Ada"}, method


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"status": "paused"}, "status"),
        ({"status": "completed"}, "a completed task needs a result"),
        ({"status": "completed", "result": "text"}, "result"),
        ({"taskId": "another", "status": "working"}, "another task"),
        (
            {"status": "input_required", "inputRequests": {str(key): elicitation() for key in range(300)}},
            "inputRequests",
        ),
    ],
)
async def test_an_answer_that_breaks_the_protocol_ends_the_handle(
    scripted: Scripted, connect: Connect, fields: dict[str, object], complaint: str
) -> None:
    scripted.poll_interval_ms = 50
    scripted.pushes = False
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        scripted.tasks["task-1"] |= fields
        with pytest.raises(InvalidTaskError, match=complaint):
            await handle.result(10)


async def test_a_result_of_another_kind_is_refused(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.set("task-1", "completed", result={"contents": []})
        with pytest.raises(InvalidTaskError, match="does not fit its request"):
            await handle


async def test_refused_answers_raise_the_servers_error(scripted: Scripted, connect: Connect) -> None:
    scripted.faults["tasks/update"] = [MCPError(-32602, "'sure' must be a boolean")]
    async with connect() as client:
        handle = await call_tool_task(client, "work", answer=False)
        await scripted.listened("task-1")
        scripted.ask("task-1", sure=elicitation())
        await handle.wait("input_required")
        assert handle.questions["sure"]["params"]["message"] == "Sure?"
        with pytest.raises(AnswerError, match="'sure' must be a boolean"):
            await handle.answer({"sure": {"action": "accept", "content": {"sure": 1}}})
        await handle.answer({"sure": types.ElicitResult(action="accept", content={"sure": True})})
        await handle.wait("working")
    assert scripted.answers == {"task-1": {"sure": [{"action": "accept", "content": {"sure": True}}]}}


async def test_tasks_without_a_handle_leave_no_open_stream(
    scripted: Scripted, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with connect() as client:
        for _ in range(3):
            await call_tool_task(client, "work")
    await eventually(lambda: scripted.streams == {})
    assert [record for record in caplog.records if record.name.startswith("mcp_celery")] == []
