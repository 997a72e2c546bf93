"""Values and exceptions of user code that JSON, Celery or asyncio do not expect: each ends its own task alone."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import ErrorData, TextContent

from mcp_celery import Settings, TaskContextSnapshot
from mcp_celery.engine import MAX_MESSAGE_CHARS, JSONObject, Progress, RpcError, Submission
from mcp_celery.errors import INTERNAL_ERROR
from mcp_celery.keys import TaskType
from mcp_celery.store.keys import RedisKeys
from tests.integration.conftest import Starter, settings_for
from tests.support.brokers import mariadb
from tests.support.live import ANYONE, REVISION, LiveServer, live_server
from tests.support.nodes import EmbeddedStoreContainer, Pool, WorkerProcess
from tests.support.servers import odd
from tests.support.servers.hostile import RAISED
from tests.support.servers.odd import CHILD_EXITS, DATA, EXITS, NAMES, PROGRESS, STARTS, UNSENDABLE

pytestmark = pytest.mark.anyio

SERVER = "tests.support.servers.odd:server"
MOST_BYTES = 200_000


@pytest.fixture(scope="session")
def odd_settings(store: EmbeddedStoreContainer, pool: Pool) -> Settings:
    return settings_for(store, f"odd-{pool}", max_result_bytes=MOST_BYTES)


@pytest.fixture(scope="session")
def odd_worker(shared: Starter, odd_settings: Settings, pool: Pool) -> Generator[WorkerProcess]:
    worker = shared.worker(SERVER, pool, odd_settings)
    yield worker
    worker.teardown()


@pytest.fixture
async def live(odd_settings: Settings, odd_worker: WorkerProcess) -> AsyncGenerator[LiveServer]:
    async with live_server(odd.build, odd_settings) as server:
        yield server


async def still_works(live: LiveServer) -> bool:
    return await live.text_of("sized", {"size": 3}) == "xxx"


def reason(kind: str) -> RpcError:
    name = NAMES.get(kind, kind)
    return RpcError(INTERNAL_ERROR, f"The component raised {name}, which would have ended its process")


@pytest.mark.smoke
@pytest.mark.each_pool
@pytest.mark.parametrize("tool", ["leaves", "leaves_async"])
async def test_an_exit_of_a_component_ends_its_task_alone(live: LiveServer, tool: str) -> None:
    for kind in EXITS:
        record = (await live.run(tool, {"kind": kind})).record
        assert record.status == "failed"
        # Python closes coroutines with this one: on its way through them it may be taken for the end of the job.
        if kind != "GeneratorExit":
            assert record.error == reason(kind)
    assert await still_works(live)


@pytest.mark.each_pool
@pytest.mark.parametrize("kind", CHILD_EXITS)
async def test_an_event_loop_outlives_what_a_component_does_to_it(live: LiveServer, kind: str) -> None:
    for start in STARTS:
        assert (await live.run("leaves_in_a_task", {"kind": kind, "start": start})).record.error == reason(kind)
    assert (await live.run("leaves_from_a_thread", {"kind": kind})).record.error == reason(kind)
    assert await live.text_of("leaves_later", {"kind": kind}) == "left"
    assert await live.text_of("stops_the_loop") == "went on"
    assert await still_works(live)


@pytest.mark.each_pool
@pytest.mark.parametrize(
    ("task_type", "component", "params"),
    [("prompt", "leaving_prompt", {"name": "leaving_prompt"}), ("resource", "odd://leaving", {"uri": "odd://leaving"})],
)
async def test_an_exit_of_a_prompt_or_resource_ends_its_task_alone(
    live: LiveServer, task_type: TaskType, component: str, params: JSONObject
) -> None:
    submission = Submission(
        caller=ANYONE,
        task_type=task_type,
        component=component,
        config=live.tasks.config(task_type, component)[1],
        snapshot=TaskContextSnapshot(protocol_version=REVISION, params=params),
    )
    record = (await live.end_of(await live.engine.submit(submission))).record
    assert (record.status, record.error) == ("failed", reason("SystemExit"))
    assert await still_works(live)


@pytest.mark.each_pool
@pytest.mark.parametrize("kind", RAISED)
async def test_an_exception_whose_own_methods_raise_ends_its_task_alone(live: LiveServer, kind: str) -> None:
    record = (await live.run("raises", {"kind": kind})).record
    assert record.status == "failed" or record.is_error
    assert "worker" not in (record.status_message or "")
    assert await still_works(live)


@pytest.mark.each_pool
@pytest.mark.parametrize("tool", ["returns_what_exits", "retried"])
async def test_a_result_or_a_retry_whose_own_methods_raise_ends_its_task_alone(live: LiveServer, tool: str) -> None:
    record = (await live.run(tool)).record
    assert record.status == "failed" or record.is_error
    assert "worker" not in (record.status_message or "")
    assert await still_works(live)


async def test_an_exit_of_the_lifespan_fails_its_job_and_the_lifespan_is_entered_again(
    own: Starter, store: EmbeddedStoreContainer, pool: Pool, tmp_path: Path
) -> None:
    (exits := tmp_path / "exits").touch()
    settings = settings_for(store, f"odd-lifespan-{pool}")
    own.worker(SERVER, pool, settings, env={odd.LIFESPAN_VARIABLE: str(exits)})
    async with live_server(odd.build, settings) as live:
        record = (await live.run("sized", {"size": 3})).record
        assert record.error == RpcError(INTERNAL_ERROR, "The server's lifespan could not be entered in the worker")
        exits.unlink()
        assert await still_works(live)


@pytest.mark.parametrize("kind", EXITS)
async def test_an_exit_in_the_foreground_fails_the_request_and_the_server_continues(
    live: LiveServer, kind: str
) -> None:
    async with live.foreground() as client:
        for leave in (
            client.call_tool("leaves", {"kind": kind}),
            client.call_tool("leaves_async", {"kind": kind}),
            client.get_prompt("leaving_prompt"),
            client.read_resource("odd://leaving"),
        ):
            with pytest.raises(MCPError, match=r"The component raised \w+, which would have ended its process"):
                await leave
        answered = await client.call_tool("sized", {"size": 2})
        assert answered.content == [TextContent(type="text", text="xx")]


async def foreground_error(client: Client, tool: str, arguments: JSONObject) -> RpcError:
    with pytest.raises(MCPError) as refused:
        await client.call_tool(tool, arguments)
    error = refused.value.error
    return RpcError(error.code, error.message, error.data)


@pytest.mark.parametrize("kind", DATA)
async def test_the_data_of_an_error_is_that_of_the_foreground(live: LiveServer, kind: str) -> None:
    record = (await live.run("fails", {"kind": kind})).record
    async with live.foreground() as client:
        answered = await foreground_error(client, "fails", {"kind": kind})
    # The client in memory is handed the objects; over a wire it gets what the SDK makes of them.
    sent = json.loads(ErrorData(code=answered.code, message="", data=answered.data).model_dump_json())
    assert record.error == RpcError(answered.code, answered.message, sent["data"])


@pytest.mark.parametrize("kind", UNSENDABLE)
async def test_data_that_has_no_json_is_left_out_of_the_error(live: LiveServer, kind: str) -> None:
    record = (await live.run("fails", {"kind": kind})).record
    assert (record.status, record.error) == ("failed", RpcError(-32001, "no"))


async def test_the_text_and_the_data_of_an_error_are_bounded(live: LiveServer) -> None:
    record = (await live.run("fails_at_length", {"text": 1_500_000, "data": 100})).record
    assert record.error == RpcError(-32001, "m" * MAX_MESSAGE_CHARS, "d" * 100)
    record = (await live.run("fails_at_length", {"text": 10, "data": MOST_BYTES})).record
    assert record.error == RpcError(-32001, "m" * 10)


async def test_an_exception_without_a_text_is_a_tool_error(live: LiveServer) -> None:
    view = await live.run("speechless")
    async with live.foreground() as client:
        answered = await client.call_tool("speechless", {})
    assert view.result is not None
    assert view.result["content"] == [one.model_dump(exclude_none=True) for one in answered.content]


@pytest.mark.parametrize("kind", PROGRESS)
async def test_a_progress_that_is_no_number_ends_nothing(live: LiveServer, kind: str) -> None:
    view = await live.run("reports", {"kind": kind})
    assert (view.record.status, view.record.is_error) == ("completed", False)
    if kind == "decimal":
        assert (view.record.progress, view.record.status_message) == (Progress(1.5, 1.5), "step decimal (1.5/1.5)")
    else:
        assert (view.record.progress, view.record.status_message) == (None, f"step {kind}")


@pytest.mark.parametrize("kind", [*DATA, *UNSENDABLE])
async def test_log_data_of_any_kind_ends_nothing_and_shows_no_address(live: LiveServer, kind: str) -> None:
    record = (await live.run("logs", {"kind": kind})).record
    assert (record.status, record.is_error) == ("completed", False)
    assert " at 0x" not in (record.status_message or "")
    assert "4111" not in (record.status_message or "")


@pytest.mark.each_pool
@pytest.mark.smoke
async def test_a_result_comes_back_as_it_was(live: LiveServer) -> None:
    for value in ({"__type__": "date", "__value__": "2025-01-01"}, {"__type__": "Widget", "__value__": 1}):
        assert await live.structured("echo", {"value": value}) == {"value": value}


async def test_a_result_that_is_too_large_fails_the_task_and_says_so(live: LiveServer) -> None:
    assert len(await live.text_of("sized", {"size": 90_000})) == 90_000  # it is stored as text and structured
    record = (await live.run("sized", {"size": 110_000})).record
    assert record.status == "failed"
    assert record.error is not None
    assert "MCP_CELERY_MAX_RESULT_BYTES" in record.error.message
    assert str(MOST_BYTES) in record.error.message


async def test_a_result_that_a_database_cannot_hold_fails_the_task_and_says_so(
    own: Starter, store: EmbeddedStoreContainer, pool: Pool
) -> None:
    with mariadb() as url:
        settings = settings_for(store, f"odd-mariadb-{pool}", result_backend=f"db+{url}")
        own.worker(SERVER, pool, settings)
        async with live_server(odd.build, settings) as live:
            assert len(await live.text_of("sized", {"size": 20_000})) == 20_000
            record = (await live.run("sized", {"size": 50_000})).record
            assert record.status == "failed"
            assert record.error is not None
            assert "the result backend does not hold its result of 100" in record.error.message
            assert await still_works(live)


async def test_a_server_of_release_0_1_0_reads_what_a_worker_stores_for_it(
    own: Starter, store: EmbeddedStoreContainer, pool: Pool
) -> None:
    """A snapshot without a number says that the task's server reads no results in the form of today."""
    settings = settings_for(store, f"odd-before-{pool}")
    async with live_server(odd.build, settings) as live:
        record = await live.submit("sized", {"size": 3})
        keys = RedisKeys(settings.key_prefix, live.tasks.namespace)
        with live.redis() as redis:
            place = keys.snapshot(record.scope, record.task_id)
            snapshot = json.loads(str(redis.get(place)))
            assert snapshot.pop("format") == 2
            redis.set(place, json.dumps(snapshot), keepttl=True)
        own.worker(SERVER, pool, settings)
        view = await live.end_of(record)
        assert view.result is not None
        assert view.result["content"] == [{"type": "text", "text": "xxx"}]
        assert live.app.backend.get_task_meta(record.job_id)["result"]["result"] == view.result
