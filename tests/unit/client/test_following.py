"""How a client follows tasks: by push where the server pushes, else by asking, through drops, faults and restarts."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import anyio
import httpx2
import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError

from mcp_celery.client import (
    ClientClosedError,
    InvalidTaskError,
    TaskError,
    TaskGoneError,
    TaskHandle,
    TasksClient,
    TaskUnreachableError,
    call_tool_task,
    resilient_http,
)
from mcp_celery.client import http as http_module
from mcp_celery.client import push as push_module
from mcp_celery.client import retry as retry_module
from mcp_celery.client import tracked_task as followed_module
from mcp_celery.client import tracker as follower_module
from mcp_celery.client.retry import jittered
from mcp_celery.client.tracked_task import FollowedTask
from mcp_celery.client.wire import parse_task
from tests.support.scripted import STARTED, Scripted, elicitation, text_of
from tests.support.waiting import eventually
from tests.unit.client.conftest import Connect

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_module, "LEAST_RETRY_SECONDS", 0.02)


async def test_a_pushed_task_is_not_asked_for(scripted: Scripted, connect: Connect) -> None:
    scripted.poll_interval_ms = 50
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        # Until it hears that the server pushes, which may take several intervals, the client asks.
        scripted.push({**scripted.tasks["task-1"], "statusMessage": "pushed"})
        await eventually(lambda: handle.state.status_message == "pushed")
        asked = scripted.count("tasks/get")
        await anyio.sleep(0.3)  # several intervals
        scripted.complete("task-1")
        await handle
    # One may have been on its way; what it brings is older than what was pushed, or not, so it is asked for once more.
    assert scripted.count("tasks/get") <= asked + 2
    assert scripted.count("subscriptions/listen") == 1


async def test_a_server_that_pushes_only_changes_is_polled_for_the_current_state(
    scripted: Scripted, connect: Connect
) -> None:
    """What happened between the task's creation and the acknowledgement is on no stream."""
    scripted.poll_interval_ms = 50
    scripted.tells_first = False
    scripted.faults["tasks/get"] = [MCPError(-32603, "store unavailable")]
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.complete("task-1", silently=True)
        assert text_of(await handle.result(10)) == "done"
    assert scripted.count("tasks/get") == 2


async def test_a_push_that_was_lost_is_made_up_for(scripted: Scripted, connect: Connect) -> None:
    scripted.poll_interval_ms = 50
    async with connect(tasks={"silence_seconds": 0.2}) as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        await handle.wait("working")
        scripted.complete("task-1", silently=True)
        assert text_of(await handle.result(10)) == "done"


@pytest.mark.parametrize("pushes", [None, False], ids=["refused", "not-acknowledged"])
async def test_without_push_the_task_is_asked_for(
    scripted: Scripted, connect: Connect, pushes: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.poll_interval_ms = 50
    scripted.pushes = pushes
    async with connect() as client:
        for number in (1, 2):
            handle = await call_tool_task(client, "work")
            await eventually(lambda: scripted.count("tasks/get") >= 2)
            scripted.complete(f"task-{number}")
            assert text_of(await handle.result(10)) == "done"
            scripted.asked = [one for one in scripted.asked if one[0] != "tasks/get"]
        await eventually(lambda: scripted.listening == 0, what="nothing is held open for nothing")
    assert scripted.count("subscriptions/listen") == 1, "it is not tried again"
    assert "Traceback" not in caplog.text


async def test_a_task_is_never_asked_for_more_often_than_the_server_wants(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.pushes = None
    scripted.poll_interval_ms = 80
    times: list[float] = []
    take = FollowedTask.take

    def note(task: FollowedTask, state: Any) -> bool:
        times.append(anyio.current_time())
        return take(task, state)

    monkeypatch.setattr(FollowedTask, "take", note)
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await eventually(lambda: scripted.count("tasks/get") >= 5)
        scripted.complete("task-1")
        await handle.result(10)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps[1:]) >= 0.079
    assert gaps[-1] > gaps[1], "it backs off while nothing changes"


def seconds_of(*, interval: object, asked: int = 0) -> float:
    task = FollowedTask(
        parse_task({"taskId": "t", "status": "working", "pollIntervalMs": interval}),
        answering=False,
        is_open=lambda: True,
    )
    for _ in range(asked):
        task.back_off()
    return task.interval_seconds


async def test_polling_intervals_have_a_minimum_and_a_maximum() -> None:
    assert seconds_of(interval=2000) == 2
    assert seconds_of(interval=None) == seconds_of(interval=-1) == seconds_of(interval="soon") == 1
    assert seconds_of(interval=0) == followed_module.LEAST_INTERVAL_SECONDS
    assert seconds_of(interval=10**30) == seconds_of(interval=10**400) == 3600
    assert seconds_of(interval=1000, asked=2) == 2.25
    assert seconds_of(interval=1000, asked=1000) == 8
    assert seconds_of(interval=10_000, asked=1000) == 30
    assert seconds_of(interval=60_000, asked=1000) == 60, "backing off never makes it shorter"


async def test_a_server_that_names_endless_times_ends_the_following_of_no_task(
    scripted: Scripted, connect: Connect
) -> None:
    async with connect() as client:
        neighbour = await call_tool_task(client, "work")
        scripted.poll_interval_ms = 10**400
        handle = await call_tool_task(client, "work", answer=False)
        await scripted.listened("task-1", "task-2")
        scripted.set("task-2", "working", ttlMs=10**400, statusMessage="half way")
        await eventually(lambda: handle.state.status_message == "half way", what="the push is heard")
        for number, one in enumerate((neighbour, handle), 1):
            scripted.complete(f"task-{number}")
            assert text_of(await one.result(10)) == "done"


async def test_a_pushed_task_is_asked_for_less_often_as_it_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_module, "JITTER", 0)
    now = anyio.current_time()
    task = FollowedTask(parse_task({"taskId": "t", "status": "working"}), answering=False, is_open=lambda: True)
    pauses: list[float] = []
    for age in (0, 10, 1000):
        clock = SimpleNamespace(current_time=lambda age=age: now + age)
        monkeypatch.setattr(followed_module, "anyio", clock)
        pauses.append(task.pause_seconds(24))
    assert pauses == pytest.approx([2, 7, 24], abs=0.1)
    assert task.pause_seconds(None) == 1


async def test_pauses_are_spread_by_a_quarter() -> None:
    pauses = [jittered(4) for _ in range(1000)]
    assert 4 <= min(pauses) < 4.1
    assert 4.9 < max(pauses) <= 5


async def test_a_stream_that_drops_is_opened_again(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        for _ in range(3):
            await scripted.listened("task-1")
            ending = set(scripted.streams)
            scripted.end_streams()
            # Not until there is none: the next one may come before anybody looks.
            await eventually(lambda ending=ending: ending.isdisjoint(scripted.streams))
        await scripted.listened("task-1")
        scripted.complete("task-1")
        assert text_of(await handle) == "done"
    assert scripted.count("subscriptions/listen") == 4


async def test_while_a_stream_is_gone_the_task_is_asked_for(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_module, "LEAST_RETRY_SECONDS", 3600)
    scripted.poll_interval_ms = 50
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.end_streams()
        scripted.complete("task-1", silently=True)
        assert text_of(await handle.result(10)) == "done"


async def test_a_stream_that_is_refused_is_asked_for_less_and_less_often(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever wakes the stream's keeper meanwhile: new tasks, answers, tasks that end."""
    monkeypatch.setattr(push_module, "LEAST_RETRY_SECONDS", 0.2)
    scripted.poll_interval_ms = 50
    scripted.faults["subscriptions/listen"] = [MCPError(-32603, "store unavailable")] * 1000
    async with connect() as client:
        began = anyio.current_time()
        for number in range(1, 6):
            handle = await call_tool_task(client, "work")
            await eventually(lambda asked=4 * number: scripted.count("tasks/get") >= asked)
            scripted.complete(f"task-{number}")
            await handle.result(10)
        elapsed = anyio.current_time() - began
    least_pauses = itertools.accumulate(0.2 * 2**number for number in range(100))
    most = 1 + sum(1 for _ in itertools.takewhile(lambda pause: pause <= elapsed, least_pauses))
    assert 1 <= scripted.count("subscriptions/listen") <= most


@pytest.mark.parametrize("place", [0, 1, 2, 3])
async def test_a_task_that_breaks_streams_is_asked_for_and_its_neighbours_are_pushed(
    scripted: Scripted, connect: Connect, place: int
) -> None:
    scripted.poll_interval_ms = 50
    async with connect() as client:
        handles = [await call_tool_task(client, "work") for _ in range(4)]
        culprit, *others = [handles[place], *handles[:place], *handles[place + 1 :]]
        names = {handle.task_id for handle in others}
        await eventually(lambda: list(map(set, scripted.streams.values())) == [set(scripted.tasks)], what="one stream")
        scripted.breaking.add(culprit.task_id)
        scripted.set(culprit.task_id, "working", statusMessage="too large to push")
        await eventually(lambda: list(map(set, scripted.streams.values())) == [names], what="a stream of the others")
        opened = scripted.count("subscriptions/listen")
        late = await call_tool_task(client, "work")
        await scripted.listened(late.task_id)
        for handle in (*others, late):
            scripted.complete(handle.task_id, handle.task_id)
            assert text_of(await handle.result(10)) == handle.task_id
        scripted.complete(culprit.task_id, "asked for", silently=True)
        assert text_of(await culprit.result(10)) == "asked for"
    assert scripted.count("subscriptions/listen") == opened + 1, "no stream broke any more"


async def test_streams_that_all_break_are_given_up_task_by_task(scripted: Scripted, connect: Connect) -> None:
    scripted.poll_interval_ms = 50
    scripted.breaking = {"task-1", "task-2", "task-3"}
    async with connect() as client:
        for number in (1, 2, 3):
            handle = await call_tool_task(client, "work")
            await eventually(lambda most=2 * number: scripted.count("subscriptions/listen") == most)
            asked = scripted.count("tasks/get")
            await eventually(lambda more=asked + 3: scripted.count("tasks/get") >= more)
            scripted.complete(handle.task_id)
            assert text_of(await handle.result(10)) == "done"
    assert scripted.count("subscriptions/listen") == 6, "two for each task"


async def test_many_tasks_share_a_stream(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handles = [await call_tool_task(client, "work") for _ in range(20)]
        await scripted.listened(*scripted.tasks)
        await eventually(lambda: len(scripted.streams) == 1)
        for task_id in list(scripted.tasks)[1:]:
            scripted.complete(task_id, task_id)
        assert [text_of(await handle) for handle in handles[1:]] == list(scripted.tasks)[1:]
        scripted.complete("task-1")
        await handles[0]
        await eventually(lambda: scripted.streams == {}, what="no stream without tasks")
    assert scripted.count("subscriptions/listen") <= 20


async def test_streams_are_opened_the_less_often_the_more_tasks_they_name(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[float, int]] = []
    stream = Scripted._stream  # pyright: ignore[reportPrivateUsage]

    async def note(self: Scripted, ctx: Any, task_ids: list[str]) -> Any:
        opened.append((anyio.current_time(), len(task_ids)))
        return await stream(self, ctx, task_ids)

    monkeypatch.setattr(Scripted, "_stream", note)
    async with connect() as client:
        handles = [await call_tool_task(client, "work") for _ in range(12)]
        await scripted.listened(*scripted.tasks)
        handles.append(await call_tool_task(client, "work"))
        await scripted.listened(*scripted.tasks)
    assert opened[-1][1] == 13
    for (earlier, named), (later, _) in itertools.pairwise(opened):
        assert later - earlier >= push_module.SPACING_SECONDS * named


async def test_a_server_that_takes_few_tasks_on_a_stream_is_asked_for_the_others(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.poll_interval_ms = 50
    stream = Scripted._stream  # pyright: ignore[reportPrivateUsage]

    async def refusing(self: Scripted, ctx: Any, task_ids: list[str]) -> Any:
        if len(task_ids) > 3:
            raise MCPError(-32602, "more than 3 tasks")
        return await stream(self, ctx, task_ids)

    monkeypatch.setattr(Scripted, "_stream", refusing)
    async with connect() as client:
        task_ids = [scripted.make() for _ in range(8)]
        handles = [await TaskHandle.resume(client, task_id) for task_id in task_ids]
        for task_id in task_ids:
            scripted.complete(task_id)
        with anyio.fail_after(20):
            assert [text_of(await handle) for handle in handles] == ["done"] * 8


async def test_pushes_may_overtake_each_other(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        early = dict(scripted.tasks["task-1"])
        scripted.set("task-1", "working", statusMessage="newer")
        scripted.push(early | {"statusMessage": "older"})
        scripted.push({"taskId": "task-1", "status": "paused"})
        scripted.push({"taskId": "task-1"})
        await handle.changes().__anext__()
        await eventually(lambda: handle.state.status_message == "newer")
        scripted.complete("task-1")
        scripted.push(early)
        await handle
        assert handle.state.status == "completed"


async def test_a_change_that_is_pushed_with_an_earlier_time_is_not_missed(scripted: Scripted, connect: Connect) -> None:
    """Servers of one deployment may disagree about the time."""
    scripted.poll_interval_ms = 50
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.set("task-1", "working", statusMessage="by the fast clock")
        await eventually(lambda: handle.state.status_message == "by the fast clock")
        slow = {"lastUpdatedAt": STARTED.isoformat(), "statusMessage": "by the slow clock"}
        scripted.tasks["task-1"] |= slow
        scripted.push(scripted.tasks["task-1"])
        await eventually(lambda: handle.state.status_message == "by the slow clock")
        scripted.complete("task-1")
        await handle


async def test_a_state_that_is_pushed_again_and_again_does_not_put_off_asking(
    scripted: Scripted, connect: Connect
) -> None:
    scripted.poll_interval_ms = 50
    async with connect(tasks={"silence_seconds": 0.2}) as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        early = dict(scripted.tasks["task-1"])
        scripted.complete("task-1", silently=True)
        with anyio.fail_after(30):
            while not handle.state.is_final:
                scripted.push(early)
                await anyio.sleep(0.01)


@pytest.mark.parametrize("truth", ["pushed", "answered"])
@pytest.mark.parametrize("asks", ["client", "user"])
async def test_an_answer_and_a_push_of_the_same_time_are_resolved_by_another_poll(
    scripted: Scripted, connect: Connect, monkeypatch: pytest.MonkeyPatch, truth: str, asks: str
) -> None:
    """A pushed task whose state is certain is not asked for here, so that nothing but the doubt has it asked for."""
    monkeypatch.setattr(followed_module, "LEAST_SILENCE_SECONDS", 3600.0)
    scripted.poll_interval_ms = 50
    scripted.tells_first = asks == "user"
    async with connect(tasks={"silence_seconds": 3600.0}) as client:

        async def overlap() -> dict[str, Any]:
            now = scripted.tasks["task-1"]
            scripted.push(now | {"statusMessage": "pushed"})
            await eventually(lambda: handle.state.status_message == "pushed")
            scripted.tasks["task-1"] = now | {"statusMessage": truth}
            return now | {"statusMessage": "answered"}

        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.faults["tasks/get"] = [overlap]
        before = scripted.count("tasks/get")
        if asks == "user":
            assert (await handle.status()).status_message == "pushed", "what is not older is kept"
        await eventually(lambda: scripted.count("tasks/get") >= before + 2, what="it is asked for again")
        await eventually(lambda: handle.state.status_message == truth)


async def test_tasks_that_get_no_answer_are_asked_for_a_few_at_a_time(scripted: Scripted, connect: Connect) -> None:
    scripted.poll_interval_ms = 50
    scripted.pushes = None
    waiting = most = 0

    async def stall() -> dict[str, Any]:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await anyio.sleep(0.1)
        waiting -= 1
        raise MCPError(-32603, "no answer")

    async with connect() as client:
        handles = [await call_tool_task(client, "work") for _ in range(12)]
        scripted.faults["tasks/get"] = [stall] * 10_000
        # Some tasks have been asked for, and answered, by now. Only a task that got no answer is asked for again.
        answered = len(scripted.asked)

        def asked() -> Counter[str]:
            return Counter(params["taskId"] for method, params in scripted.asked[answered:] if method == "tasks/get")

        await eventually(lambda: min(asked()[task_id] for task_id in scripted.tasks) >= 2, what="none was answered")
        most, before = 0, asked().total()
        await eventually(lambda: asked().total() >= before + 12, what="they are asked for again")
        scripted.faults.clear()
        for task_id in scripted.tasks:
            scripted.complete(task_id)
        for handle in handles:
            await handle.result(30)
    assert 1 <= most <= follower_module.MOST_ASKED_AGAIN_AT_ONCE


async def test_the_client_states_how_large_a_push_it_takes(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened(handle.task_id)
    (listening,) = [params for method, params in scripted.asked if method == "subscriptions/listen"]
    is_http = any(headers for headers in scripted.headers)
    largest = http_module.LARGEST_ANSWER if is_http else 1024 * 1024
    assert listening["_meta"]["mcp-celery/max-event-bytes"] == largest - 1024


async def test_a_client_that_follows_nothing_does_nothing(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        scripted.complete("task-1")
        await handle
        await eventually(lambda: scripted.listening == 0)
        looks = 0

        def look(push: push_module.TaskPush) -> None:
            nonlocal looks
            looks += 1
            as_before(push)

        as_before = push_module.TaskPush.look
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(push_module.TaskPush, "look", look)
            for _ in range(100):
                await anyio.lowlevel.checkpoint()
        assert looks <= 1


async def test_a_server_that_says_the_time_for_the_last_change_does_not_seem_to_change() -> None:
    told = {"taskId": "t", "status": "working"}
    task = FollowedTask(parse_task(told), answering=False, is_open=lambda: True)
    assert not task.take(parse_task(told | {"lastUpdatedAt": STARTED.isoformat()}))
    assert task.state.last_updated_at == STARTED
    assert task.take(parse_task(told | {"statusMessage": "half"}))


@pytest.mark.parametrize(
    "fault", [MCPError(-32603, "store unavailable"), MCPError(-32000, "gone"), MCPError(-32001, "slow")]
)
async def test_a_fault_that_passes_is_waited_for(scripted: Scripted, connect: Connect, fault: MCPError) -> None:
    scripted.poll_interval_ms = 50
    scripted.pushes = None
    scripted.faults["tasks/get"] = [fault] * 3
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        scripted.complete("task-1")
        assert text_of(await handle.result(10)) == "done"


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (MCPError(-32602, "expired"), TaskGoneError, "does not exist, has expired"),
        (
            MCPError(-32000, "Server-sent event exceeded the 9 byte limit."),
            TaskError,
            "larger than the client's transport",
        ),
        (MCPError(-32021, "declare it"), TaskError, "refused a request about task task-1: declare it"),
        ({"taskId": "task-1", "status": "paused"}, InvalidTaskError, "status"),
        ({"taskId": "task-1", "status": "working", "_meta": 5}, InvalidTaskError, "is not a result of MCP"),
    ],
)
async def test_a_fault_that_stays_ends_the_handle(
    scripted: Scripted, connect: Connect, fault: Any, error: type[Exception], says: str
) -> None:
    scripted.poll_interval_ms = 50
    scripted.pushes = None
    scripted.faults["tasks/get"] = [fault]
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        with pytest.raises(error, match=says):
            await handle.result(10)
        with pytest.raises(error, match=says):
            async for _ in handle.changes():
                pass


async def test_a_server_that_stays_silent_is_given_up(scripted: Scripted, connect: Connect) -> None:
    scripted.poll_interval_ms = 50
    scripted.pushes = None
    scripted.faults["tasks/get"] = [MCPError(-32603, "store unavailable")] * 1000
    async with connect(tasks={"patience_seconds": 0.2}) as client:
        handle = await call_tool_task(client, "work")
        with pytest.raises(TaskUnreachableError, match=r"no answer about task task-1 for 0\.2 s: store unavailable"):
            await handle.result(10)


async def given_up(scripted: Scripted, client: Client) -> TaskHandle:
    """A handle whose server was silent for too long, and answers again."""
    scripted.faults["tasks/get"] = [MCPError(-32603, "store unavailable")] * 1000
    handle = await call_tool_task(client, "work")
    with pytest.raises(TaskUnreachableError):
        await handle.result(10)
    del scripted.faults["tasks/get"]
    return handle


async def test_a_handle_that_was_given_up_shows_and_follows_what_the_server_answers_later(
    scripted: Scripted, connect: Connect
) -> None:
    scripted.poll_interval_ms = 50
    scripted.pushes = None
    heard: list[str] = []
    async with connect(tasks={"patience_seconds": 0.2}) as client:
        handle = await given_up(scripted, client)
        handle.on_status_change(lambda state: heard.append(state.status))
        scripted.set("task-1", "working", statusMessage="back")
        assert (await handle.status()).status_message == "back"
        scripted.complete("task-1")
        assert text_of(await handle.result(10)) == "done"
        assert heard == ["working", "completed"]
        handle = await given_up(scripted, client)
        assert (await handle.cancel()).status == "cancelled"


async def test_a_handle_that_was_given_up_leaves_following_to_the_one_that_was_found_again(
    scripted: Scripted, connect: Connect
) -> None:
    scripted.poll_interval_ms = 50
    scripted.pushes = None
    async with connect(tasks={"patience_seconds": 0.2}) as client:
        handle = await given_up(scripted, client)
        again = await TaskHandle.resume(client, "task-1")
        scripted.set("task-1", "working", statusMessage="back")
        assert (await handle.status()).status_message == "back"
        scripted.complete("task-1")
        assert text_of(await again.result(10)) == "done"
        assert (await handle.status()).status == "completed"


async def test_an_immediate_poll_reports_what_is_wrong(scripted: Scripted, connect: Connect) -> None:
    async with connect() as client:
        handle = await call_tool_task(client, "work")
        scripted.faults["tasks/get"] = [MCPError(-32603, "store unavailable"), MCPError(-32602, "expired")]
        with pytest.raises(MCPError, match="store unavailable"):
            await handle.status()
        with pytest.raises(TaskGoneError):
            await handle.status()
        with pytest.raises(TaskGoneError):
            await handle


async def test_following_continues_after_a_restart_of_the_server(scripted: Scripted) -> None:
    scripted.poll_interval_ms = 50
    async with (
        scripted.http() as http,
        Client(resilient_http(http.url), extensions=[TasksClient()]) as client,
    ):
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        await http.stop()
        with pytest.raises(MCPError, match=r"127\.0\.0\.1:\d+ cannot be reached"):
            await handle.status()
        scripted.complete("task-1", "over the restart")
        await http.start()
        assert text_of(await handle.result(20)) == "over the restart"


async def test_following_continues_when_a_proxy_finds_its_server_again(scripted: Scripted) -> None:
    """Meanwhile it answers with status 404, and no JSON-RPC."""
    scripted.poll_interval_ms = 50
    refused: list[str] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        refused.extend(re.findall(r"(?i)mcp-method: (\S+)", head.decode()))
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with (
        scripted.http() as http,
        Client(resilient_http(http.url), extensions=[TasksClient()]) as client,
    ):
        handle = await call_tool_task(client, "work")
        await scripted.listened("task-1")
        await http.stop()
        async with await asyncio.start_server(refuse, "127.0.0.1", httpx2.URL(http.url).port):
            await eventually(lambda: {"tasks/get", "subscriptions/listen"} <= {*refused}, what="both are refused")
        await http.start()
        await scripted.listened("task-1")
        scripted.complete("task-1", "behind the proxy")
        assert text_of(await handle.result(20)) == "behind the proxy"


async def test_a_connection_that_has_ended_is_reported_at_once(scripted: Scripted) -> None:
    """As when the process of a server on stdio has ended."""
    async with Client(scripted.server, extensions=[TasksClient()]) as client:
        handle = await call_tool_task(client, "work")
        scripted.faults["tasks/get"] = [MCPError(-32000, "Connection closed")]
        with pytest.raises(ClientClosedError):
            await handle.status()
        with pytest.raises(ClientClosedError):
            await handle


async def test_requests_name_their_task_in_a_header(scripted: Scripted) -> None:
    async with scripted.http() as http, Client(resilient_http(http.url), extensions=[TasksClient()]) as client:
        handle = await call_tool_task(client, "work", answer=False)
        await handle.status()
        await scripted.listened("task-1")
        scripted.ask("task-1", sure=elicitation())
        await handle.answer({"sure": {"action": "decline"}})
        await handle.cancel()
    named = [
        headers.get("mcp-name")
        for headers, (method, _) in zip(scripted.headers, scripted.asked, strict=True)
        if method.startswith("tasks/")
    ]
    assert named == ["task-1"] * 4
