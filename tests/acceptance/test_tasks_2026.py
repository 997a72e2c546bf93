"""Revision 2026-07-28 on the wire: raw HTTP, a real server, a real worker on each pool, a real store."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from tests.support.deployment import Deployment
from tests.support.schemas import assert_valid
from tests.support.waiting import PATIENCE_SECONDS
from tests.support.wire import EXTENSION, JSON, Wire, follow

pytestmark = pytest.mark.anyio

MAX_EVENT_BYTES = "mcp-celery/max-event-bytes"
NOT_FOUND = "Task not found: it does not exist, has expired, or belongs to another caller"


def params_of(method: str) -> JSON:
    """What a method needs besides the task's id."""
    return {"inputResponses": {}} if method == "tasks/update" else {}


async def ended(wire: Wire, task_id: str) -> JSON:
    """A task's end, learnt by push."""
    return (await follow(wire, task_id))[-1]


# --- Negotiation


@pytest.mark.shows("M1")
async def test_the_extension_is_advertised_and_no_core_capability(url: str) -> None:
    async with Wire(url) as wire:
        capabilities = (await wire.ask("server/discover")).result["capabilities"]
    # The extension's schema allows no settings.
    assert capabilities["extensions"][EXTENSION] == {}
    assert capabilities["extensions"]["mcp-celery/tasks"] == {"idempotentCreation": True}
    assert "tasks" not in capabilities


@pytest.mark.shows("M2", "M7", "M25")
async def test_a_request_that_declares_the_extension_gets_a_task(url: str) -> None:
    async with Wire(url) as wire:
        created = await wire.create("slow_compute", seconds=0)
        assert_valid("CreateTaskResult", created)
        assert created["status"] == "working"
        assert isinstance(created["ttlMs"], int)
        assert created["pollIntervalMs"] == 100
        assert not {"task", "ttl", "pollInterval", "result", "error", "requestState", "content"} & created.keys()
        assert (await ended(wire, created["taskId"]))["status"] == "completed"


@pytest.mark.shows("M2", "M3")
async def test_each_request_declares_for_itself(url: str) -> None:
    async with Wire(url) as wire:
        await wire.create("slow_compute", seconds=0)
        wire.extension = False
        plain = (await wire.call("slow_compute", seconds=0)).result
    assert plain["resultType"] == "complete"
    assert plain["content"][0]["text"] == "done"


@pytest.mark.shows("M4")
async def test_a_tool_that_runs_only_as_a_task_refuses_clients_without_tasks(url: str) -> None:
    async with Wire(url, extension=False) as wire:
        error = (await wire.call("failing_job")).error
    assert error["code"] == -32021
    assert error["data"]["requiredCapabilities"]["extensions"] == {EXTENSION: {}}


@pytest.mark.shows("M5")
@pytest.mark.parametrize("method", ["tasks/get", "tasks/cancel", "tasks/update"])
async def test_task_methods_need_the_extension_before_anything_else(url: str, method: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("slow_compute", seconds=0))["taskId"]
        wire.extension = False
        params = params_of(method)
        answers = [(await wire.ask(method, {"taskId": one, **params})).error for one in (task_id, "nobody-made-this")]
    assert [error["code"] for error in answers] == [-32021, -32021]
    assert answers[0] == answers[1]


@pytest.mark.shows("M3")
async def test_a_tool_without_task_runs_in_the_foreground(url: str) -> None:
    async with Wire(url) as wire:
        assert (await wire.call("greet", name="Ada")).result["content"][0]["text"] == "Hello, Ada!"


@pytest.mark.shows("M18")
@pytest.mark.parametrize("method", ["tasks/result", "tasks/list"])
async def test_methods_of_the_other_era_do_not_exist(url: str, method: str) -> None:
    async with Wire(url) as wire:
        assert (await wire.ask(method, {"taskId": "x"})).error["code"] == -32601


@pytest.mark.shows("M18")
async def test_a_task_parameter_of_the_other_era_is_ignored(url: str) -> None:
    async with Wire(url) as wire:
        answer = await wire.ask("tools/call", {"name": "greet", "arguments": {"name": "Ada"}, "task": {"ttl": 5}})
    assert answer.result["resultType"] == "complete"


# --- Ends


@pytest.mark.each_pool
@pytest.mark.shows("M10", "M25")
async def test_a_completed_task_holds_what_the_foreground_call_returns(url: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("measured", label="heights", values=[1, "2"]))["taskId"]
        final = await ended(wire, task_id)
        polled = await wire.get(task_id)
        wire.extension = False
        plain = (await wire.call("measured", label="heights", values=[1, "2"])).result
    assert_valid("GetTaskResult", polled)
    assert polled["resultType"] == "complete"
    for shown in (final["result"], polled["result"]):
        assert {key: value for key, value in shown.items() if key != "_meta"} == {
            key: value for key, value in plain.items() if key != "_meta"
        }
    assert polled["result"]["structuredContent"] == {"label": "heights", "values": [1, 2]}


@pytest.mark.shows("M11")
async def test_a_tool_that_raises_is_completed_with_an_error_result(url: str) -> None:
    async with Wire(url) as wire:
        final = await ended(wire, (await wire.create("failing_job"))["taskId"])
    assert final["status"] == "completed"
    assert final["result"]["isError"] is True
    assert "boom" not in str(final)


@pytest.mark.shows("M10", "M11", "M25")
async def test_a_json_rpc_error_fails_the_task(url: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("protocol_error_job"))["taskId"]
        final = await ended(wire, task_id)
        assert_valid("GetTaskResult", await wire.get(task_id))
    assert final["status"] == "failed"
    assert final["error"] == {"code": -32050, "message": "the gears are stuck", "data": {"gear": 7}}
    assert final["statusMessage"] == "the gears are stuck"
    assert "result" not in final


@pytest.mark.shows("M11")
async def test_a_result_that_cannot_be_serialized_fails_with_a_reason(url: str) -> None:
    async with Wire(url) as wire:
        final = await ended(wire, (await wire.create("unserializable"))["taskId"])
    assert final["status"] == "failed"
    assert final["error"] == {"code": -32603, "message": "The job's result could not be serialized"}


@pytest.mark.shows("M3")
async def test_invalid_arguments_are_refused_before_a_task_exists(url: str, deployment: Deployment) -> None:
    async with Wire(url) as wire:
        before = len(deployment.our_keys())
        refused = (await wire.call("slow_compute", seconds="soon")).result
        after = len(deployment.our_keys())
        wire.extension = False
        foreground = (await wire.call("slow_compute", seconds="soon")).result
    assert refused == foreground
    assert refused["isError"] is True
    assert after <= before


# --- Reading


@pytest.mark.slow
@pytest.mark.shows("M8", "C13")
async def test_a_task_is_readable_at_once_on_every_replica(deployment: Deployment, url: str) -> None:
    other = deployment.serve()
    async with Wire(url) as here, Wire(other) as there:
        for _ in range(1000):
            created = await here.create("slow_compute", seconds=0)
            seen = await there.get(created["taskId"])
            assert seen["createdAt"] == created["createdAt"]
            assert seen["ttlMs"] == created["ttlMs"]


@pytest.mark.shows("C13", "M10")
async def test_two_replicas_and_two_workers_are_one_server(deployment: Deployment, url: str, tmp_path: Path) -> None:
    other = deployment.serve()
    async with Wire(url) as here, Wire(other) as there:
        with deployment.worker("threads", concurrency=3):
            ids = [(await here.create("wait_for_file", path=str(tmp_path / "go")))["taskId"] for _ in range(4)]
            assert {(await there.get(one))["status"] for one in ids} == {"working"}
            async with here.listen(ids) as events:
                await there.ask("tasks/cancel", {"taskId": ids[0]})
                (tmp_path / "go").touch()
                ends: dict[str, str] = {}
                async for event in events:
                    if event["params"].get("status", "working") != "working":
                        ends[event["params"]["taskId"]] = event["params"]["status"]
                    if len(ends) == len(ids):
                        break
    assert [ends[one] for one in ids] == ["cancelled", "completed", "completed", "completed"]


@pytest.mark.shows("C12")
async def test_streams_that_are_gone_leave_no_subscription(url: str, deployment: Deployment, tmp_path: Path) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("wait_for_file", path=str(tmp_path / "go")))["taskId"]
        for _ in range(20):
            async with wire.listen([task_id]) as events:
                await anext(events)
        with anyio.fail_after(PATIENCE_SECONDS):
            while deployment.channels():
                await wire.get(task_id)
        (tmp_path / "go").touch()
        assert (await ended(wire, task_id))["status"] == "completed"


@pytest.mark.shows("M23")
async def test_task_ids_are_long_and_random(url: str) -> None:
    async with Wire(url) as wire:
        ids = {(await wire.create("slow_compute", seconds=0))["taskId"] for _ in range(20)}
    assert len(ids) == 20
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", one) for one in ids)


@pytest.mark.shows("M10")
async def test_polling_changes_nothing(url: str, tmp_path: Path) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("wait_for_file", path=str(tmp_path / "go")))["taskId"]
        seen = [await wire.get(task_id) for _ in range(5)]
        (tmp_path / "go").touch()
        final = await ended(wire, task_id)
    assert len({one["lastUpdatedAt"] for one in seen}) == 1
    assert {one["createdAt"] for one in [*seen, final]} == {seen[0]["createdAt"]}
    assert datetime.fromisoformat(final["lastUpdatedAt"]) >= datetime.fromisoformat(seen[0]["lastUpdatedAt"])


@pytest.mark.shows("M16", "M23")
@pytest.mark.parametrize("task_id", ["nobody-made-this", "", "a:b", "x" * 10_000, "ключ", "\x00", "../../etc"])
@pytest.mark.parametrize("method", ["tasks/get", "tasks/cancel", "tasks/update"])
async def test_missing_task_ids_of_every_form_get_the_same_answer(url: str, method: str, task_id: str) -> None:
    params = params_of(method)
    async with Wire(url) as wire:
        error = (await wire.ask(method, {"taskId": task_id, **params})).error
    assert error == {"code": -32602, "message": NOT_FOUND}


@pytest.mark.shows("M24")
async def test_a_task_is_forgotten_after_its_time_to_live(url: str, deployment: Deployment) -> None:
    async with Wire(url) as wire:
        created = await wire.create("short_lived")
        assert created["ttlMs"] == 2_000
        answer = await wire.ask("tasks/get", {"taskId": created["taskId"]})
        with anyio.fail_after(PATIENCE_SECONDS):
            while "result" in answer.message:
                answer = await wire.ask("tasks/get", {"taskId": created["taskId"]})
    assert answer.error == {"code": -32602, "message": NOT_FOUND}
    assert not [key for key in deployment.our_keys() if created["taskId"] in key]


@pytest.mark.shows("M19")
async def test_the_name_header_must_match_where_it_is_given(url: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("slow_compute", seconds=0))["taskId"]
        wrong = await wire.ask("tasks/get", {"taskId": task_id}, mcp_name="another")
        right = await wire.ask("tasks/get", {"taskId": task_id}, mcp_name=task_id)
    assert (wrong.status, wrong.error["code"]) == (400, -32020)
    assert right.result["taskId"] == task_id


# --- Updating and cancelling


@pytest.mark.shows("M14")
async def test_an_update_is_acknowledged_and_unknown_keys_are_ignored(url: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("slow_compute", seconds=0))["taskId"]
        answer = await wire.ask("tasks/update", {"taskId": task_id, "inputResponses": {"nobody-asked": {}}})
        assert_valid("UpdateTaskResult", answer.result)
        assert (await ended(wire, task_id))["status"] == "completed"


@pytest.mark.shows("L26", "M10")
async def test_a_queued_task_that_is_cancelled_never_runs(idle_deployment: Deployment, tmp_path: Path) -> None:
    async with Wire(idle_deployment.serve()) as wire:
        cancelled = (await wire.create("wait_for_file", path=str(tmp_path / "never")))["taskId"]
        kept = (await wire.create("slow_compute", seconds=0))["taskId"]
        answer = await wire.ask("tasks/cancel", {"taskId": cancelled})
        assert_valid("CancelTaskResult", answer.result)
        assert (await wire.get(cancelled))["status"] == "cancelled"
        with idle_deployment.worker("threads", concurrency=1):
            # One thread: had the first job run, it would never let the second one.
            assert (await ended(wire, kept))["status"] == "completed"
            assert (await wire.get(cancelled))["status"] == "cancelled"


@pytest.mark.each_pool
@pytest.mark.shows("L28", "M16")
async def test_a_running_task_is_cancelled_for_good(url: str, tmp_path: Path) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("counting", steps=500, pause=0.05))["taskId"]
        seen: list[JSON] = []
        async with wire.listen([task_id]) as events:
            async for event in events:
                if event["method"] != "notifications/tasks":
                    continue
                seen.append(event["params"])
                if event["params"]["status"] == "cancelled":
                    break
                if "step" in event["params"].get("statusMessage", "") and len(seen) < 4:
                    await wire.ask("tasks/cancel", {"taskId": task_id})
        again = await wire.ask("tasks/cancel", {"taskId": task_id})
        assert again.result["resultType"] == "complete"
        assert (await wire.get(task_id))["status"] == "cancelled"
        # The pool works on.
        assert (await ended(wire, (await wire.create("slow_compute", seconds=0))["taskId"]))["status"] == "completed"


@pytest.mark.shows("M16")
async def test_cancelling_what_has_ended_is_acknowledged_and_changes_nothing(url: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("slow_compute", seconds=0))["taskId"]
        final = await ended(wire, task_id)
        assert (await wire.ask("tasks/cancel", {"taskId": task_id})).result["resultType"] == "complete"
        polled = await wire.get(task_id)
    assert polled["status"] == "completed"
    assert polled["lastUpdatedAt"] == final["lastUpdatedAt"]


# --- Push


@pytest.mark.each_pool
@pytest.mark.shows("M20", "M25")
async def test_push_sends_the_current_state_then_every_change_then_nothing(url: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("counting", steps=4))["taskId"]
        events: list[JSON] = []
        async with wire.listen([task_id]) as stream:
            with anyio.move_on_after(30) as patience:
                async for event in stream:
                    events.append(event)
                    if event.get("params", {}).get("status") == "completed":
                        patience.deadline = anyio.current_time() + 0.5  # nothing may come; the stream stays open
        assert patience.cancelled_caught
        final = await wire.get(task_id)
    ack, *told = events
    assert ack["method"] == "notifications/subscriptions/acknowledged"
    assert ack["params"]["notifications"]["taskIds"] == [task_id]
    assert {event["method"] for event in told} == {"notifications/tasks"}
    assert [event["params"]["status"] for event in told[:-1]] == ["working"] * (len(told) - 1)
    messages = [event["params"].get("statusMessage") for event in told]
    assert [one for one in messages if one] == [f"step {n} ({n}/4)" for n in (1, 2, 3, 4, 4)]
    subscriptions = {event["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] for event in events}
    assert len(subscriptions) == 1
    for event in told:
        assert_valid("TaskStatusNotification", {"jsonrpc": "2.0", **event})
    told_last = {key: value for key, value in told[-1]["params"].items() if key != "_meta"}
    assert told_last == {key: value for key, value in final.items() if key not in ("_meta", "resultType")}


@pytest.mark.shows("C13")
async def test_push_reaches_every_replica(deployment: Deployment, url: str, tmp_path: Path) -> None:
    other = deployment.serve()
    async with Wire(url) as here, Wire(other) as there:
        task_id = (await here.create("wait_for_file", path=str(tmp_path / "go")))["taskId"]
        ends: list[str] = []
        async with anyio.create_task_group() as group:

            async def learn(wire: Wire) -> None:
                ends.append((await ended(wire, task_id))["status"])

            group.start_soon(learn, here)
            group.start_soon(learn, there)
            (tmp_path / "go").touch()
    assert ends == ["completed", "completed"]


@pytest.mark.shows("M20")
async def test_listening_to_an_ended_task_sends_its_end(url: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("slow_compute", seconds=0, label="once"))["taskId"]
        await ended(wire, task_id)
        seen = await follow(wire, task_id)
    assert [one["status"] for one in seen] == ["completed"]


@pytest.mark.shows("M20")
async def test_many_tasks_share_a_stream(url: str) -> None:
    async with Wire(url) as wire:
        ids = [(await wire.create("slow_compute", seconds=0, label=str(n)))["taskId"] for n in range(10)]
        results: dict[str, str] = {}
        async with wire.listen(ids) as events:
            async for event in events:
                params = event["params"]
                if params.get("status") == "completed":
                    results[params["taskId"]] = params["result"]["content"][0]["text"]
                if len(results) == len(ids):
                    break
    assert results == {task_id: f"done {n}" for n, task_id in enumerate(ids)}


@pytest.mark.shows("M20")
@pytest.mark.parametrize(
    ("announced", "pushed"),
    [
        ({}, False),
        ({MAX_EVENT_BYTES: 100_000}, True),
        ({MAX_EVENT_BYTES: 1_000}, False),
        ({MAX_EVENT_BYTES: "x"}, False),
    ],
)
async def test_a_state_too_large_to_push_is_polled_and_delays_no_other(
    deployment: Deployment, announced: JSON, pushed: bool
) -> None:
    url = deployment.serve(MCP_CELERY_MAX_PUSH_BYTES="3000")
    async with Wire(url, meta=announced) as wire:
        large = (await wire.create("slow_compute", seconds=0, label="x" * 2_000))["taskId"]
        small = (await wire.create("slow_compute", seconds=0, label="y"))["taskId"]
        with anyio.fail_after(PATIENCE_SECONDS):
            while {(await wire.get(task_id))["status"] for task_id in (large, small)} != {"completed"}:
                await anyio.lowlevel.checkpoint()
        # The states of now come in the order of the ids.
        async with wire.listen([large, small]) as events:
            told: dict[str, JSON] = {}
            async for event in events:
                if event["method"] == "notifications/tasks":
                    told[event["params"]["taskId"]] = event["params"]
                    if event["params"]["taskId"] == small:
                        break
        assert (large in told) is pushed
        assert all("result" in params for params in told.values())
        assert (await wire.get(large))["result"]["content"][0]["text"] == "done " + "x" * 2_000


@pytest.mark.shows("M20")
async def test_foreign_ids_are_left_out_and_the_core_kinds_are_served(url: str) -> None:
    async with Wire(url) as wire:
        task_id = (await wire.create("slow_compute", seconds=0))["taskId"]
        asked = [task_id, "nobody-made-this", "x" * 10_000, task_id]
        async with wire.listen(asked, toolsListChanged=True) as events:
            ack = await anext(events)
    assert ack["params"]["notifications"] == {"taskIds": [task_id], "toolsListChanged": True}


@pytest.mark.shows("M20")
async def test_listening_needs_the_extension(url: str) -> None:
    async with Wire(url, extension=False) as wire:
        answer = await wire.ask("subscriptions/listen", {"notifications": {"taskIds": ["x"]}})
    assert answer.error["code"] == -32021


@pytest.mark.shows("M20")
@pytest.mark.parametrize("task_ids", ["x", [1], [None], {"a": 1}, ["x"] * 1001])
async def test_malformed_or_too_many_ids_are_refused(url: str, task_ids: object) -> None:
    async with Wire(url) as wire:
        answer = await wire.ask("subscriptions/listen", {"notifications": {"taskIds": task_ids}})
    assert answer.error["code"] == -32602


@pytest.mark.each_pool
@pytest.mark.shows("M20")
async def test_sync_tools_report_progress_too(url: str) -> None:
    async with Wire(url) as wire:
        seen = await follow(wire, (await wire.create("in_a_thread", steps=10))["taskId"])
    assert seen[-1]["statusMessage"] == "10/10"
    assert seen[-1]["_meta"]["mcp-celery/progress"] == {"progress": 10, "total": 10}


# --- The caller


@pytest.mark.shows("C7")
async def test_a_tool_finds_its_context_in_the_worker(url: str) -> None:
    async with Wire(url, headers={"x-trace": "t-1", "x-other": "no", "accept-language": "en"}) as wire:
        created = await wire.create("whereabouts")
        result = (await ended(wire, created["taskId"]))["result"]["structuredContent"]
    assert result["job"] == f"anon:{created['taskId']}:tool:whereabouts"
    assert result["scope"] is None
    assert result["headers"] == {"x-trace": "t-1", "accept-language": "en"}
    assert (result["greeting"], result["readme"]) == ("hello from the lifespan", "read me")


@pytest.mark.shows("M23", "M16")
async def test_no_caller_reaches_the_task_of_another(guarded_url: str, url: str) -> None:
    async with Wire(guarded_url, token="alice") as alice:
        task_id = (await alice.create("whereabouts"))["taskId"]
        final = await ended(alice, task_id)
        assert final["result"]["structuredContent"]["scope"] == "app|alice"
        others = [Wire(guarded_url, token=token) for token in ("bob", "alice-elsewhere", "machine")] + [Wire(url)]
        for other in others:
            async with other as wire:
                for method in ("tasks/get", "tasks/cancel", "tasks/update"):
                    params = params_of(method)
                    error = (await wire.ask(method, {"taskId": task_id, **params})).error
                    assert error == {"code": -32602, "message": NOT_FOUND}
                async with wire.listen([task_id]) as events:
                    assert (await anext(events))["params"]["notifications"]["taskIds"] == []
        assert (await alice.get(task_id))["status"] == "completed"


@pytest.mark.shows("C7")
async def test_jobs_of_different_callers_do_not_see_each_other(guarded_url: str) -> None:
    async with Wire(guarded_url, token="alice") as alice, Wire(guarded_url, token="machine") as machine:
        for wire, scope in ((alice, "app|alice"), (machine, "robot"), (alice, "app|alice")):
            final = await ended(wire, (await wire.create("whereabouts"))["taskId"])
            assert final["result"]["structuredContent"]["scope"] == scope


@pytest.mark.shows("C8")
async def test_no_token_is_stored_anywhere(guarded_url: str, deployment: Deployment) -> None:
    secret = "alice-elsewhere"
    async with Wire(guarded_url, token=secret, headers={"x-trace": "seen"}) as wire:
        task_id = (await wire.create("slow_compute", seconds=600))["taskId"]
        dumps = deployment.contents()
        assert any("seen" in dump for dump in dumps)
        assert not [dump for dump in dumps if secret in dump]
        await wire.ask("tasks/cancel", {"taskId": task_id})


# --- Faults


@pytest.mark.shows("M9")
async def test_a_broker_that_is_down_leaves_no_task(deployment: Deployment) -> None:
    url = deployment.serve(MCP_CELERY_BROKER_URL="redis://127.0.0.1:1/0")
    async with Wire(url) as wire:
        before = deployment.our_keys()
        error = (await wire.call("slow_compute", seconds=0)).error
    assert error["code"] == -32603
    assert error["message"] == "The task queue is unavailable; no task was created, try again later"
    # Indexes live on, empty or not; and for a minute a mark of what was taken back, whose creation may be on its way.
    left = [key for key in deployment.our_keys() - before if ":task:" in key]
    assert [key for key in left if not key.endswith(":deleted")] == []


@pytest.mark.shows("M9")
async def test_a_store_that_is_down_is_an_error_and_no_hang(deployment: Deployment) -> None:
    url = deployment.serve(MCP_CELERY_REDIS_URL="redis://127.0.0.1:1/0", MCP_CELERY_BROKER_URL=deployment.store_url)
    async with Wire(url) as wire:
        message = {"code": -32603, "message": "The task store is unavailable; try again later"}
        assert (await wire.call("slow_compute", seconds=0)).error == message
        assert (await wire.ask("tasks/get", {"taskId": "x"})).error == message
        listening = await wire.ask("subscriptions/listen", {"notifications": {"taskIds": ["x"]}})
        assert listening.error == message


@pytest.mark.shows("C4")
async def test_a_job_that_no_worker_knows_fails(idle_deployment: Deployment) -> None:
    async with Wire(idle_deployment.serve()) as wire:
        task_id = (await wire.create("slow_compute", seconds=0))["taskId"]
        name, queue = f"mcp.{idle_deployment.namespace}.tool.slow_compute", f"mcp.{idle_deployment.namespace}"
        message = str(idle_deployment.redis.lpop(queue))
        assert name in message
        idle_deployment.redis.lpush(queue, message.replace(name, name.replace("slow_compute", "gone")))
        with idle_deployment.worker("threads"):
            final = await ended(wire, task_id)
    assert final["status"] == "failed"
    assert "No worker of the queue knows this job" in final["error"]["message"]
