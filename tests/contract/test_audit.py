"""One log line for each creation, end, retrieval and refused access, over the memory and the Redis store."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from collections.abc import Generator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from mcp_types.version import LATEST_HANDSHAKE_VERSION

from mcp_celery import audit
from mcp_celery.context import scope_of
from mcp_celery.engine import Caller, Change, Claim, JobOutcome, Start, TaskEngine, TaskStatus
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.errors import LimitExceededError, McpCeleryError, TaskNotFoundError
from mcp_celery.store import RedisRecovery
from tests.support.waiting import soon
from tests.support.worlds import ALICE, LIMITS, RedisWorld, Watchful, World, a_record, a_submission

pytestmark = pytest.mark.anyio


class Told:
    """The lines of the audit log, taken apart again."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def lines(self) -> list[dict[str, Any]]:
        """Each line's fields as its message has them, which are those of the record's attributes."""
        records = [record for record in self._caplog.records if record.name == audit.LOGGER]
        for record in records:
            said = dict(part.split("=", 1) for part in shlex.split(record.getMessage(), posix=False))
            fields: dict[str, Any] = record.__dict__
            assert said.pop("event") == fields["event"]
            assert json.loads(said.pop("scope")) == fields["task_scope"]
            assert said.pop("task") == (fields["task_id"] or "-")
            assert set(said) == {name.removeprefix("task_") for name in DETAILS if name in fields}
        names = ("event", "task_scope", "task_id", *DETAILS)
        found = [{name: value for name, value in record.__dict__.items() if name in names} for record in records]
        self._caplog.clear()
        for one in found:
            if (lasted := one.pop("duration_ms", None)) is not None:
                assert 0 <= int(lasted) < 600_000
        return found


DETAILS = ("task_type", "component", "task_status", "attempt", "duration_ms", "tool_error", "reason", "limit", "number")


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Generator[Told]:
    with caplog.at_level(logging.INFO, logger=audit.LOGGER):
        yield Told(caplog)


def end(task_id: str | None, status: str, **details: str) -> dict[str, Any]:
    about = {"component": "build_report", "attempt": "1", "tool_error": "false", **details}
    return line("task.ended", task_id, task_status=status, **about)


def line(event: str, task_id: str | None, scope: str | None = ALICE.scope, **details: str) -> dict[str, Any]:
    return {"event": event, "task_scope": scope, "task_id": task_id, **details}


async def test_creation_and_end_of_a_task_are_logged(world: World, engine: TaskEngine, told: Told) -> None:
    task_id = (await engine.submit(a_submission())).task_id
    assert told.lines() == [line("task.created", task_id, task_type="tool", component="build_report")]

    await engine.get(ALICE, task_id)
    assert told.lines() == []

    record = await engine.find(ALICE, task_id)
    world.put_result(record.job_id, "SUCCESS", JobOutcome({"content": []}))
    world.ledger.change(record.ref, Change(to="completed"))
    assert told.lines() == [end(task_id, "completed")]

    await engine.get(ALICE, task_id)
    assert told.lines() == [line("task.retrieved", task_id, task_status="completed")]


async def test_an_id_that_is_the_right_to_read_is_shortened(engine: TaskEngine, told: Told) -> None:
    anyone = Caller()
    task_id = (await engine.submit(a_submission(anyone))).task_id
    await engine.cancel(anyone, task_id)
    await engine.get(anyone, task_id)
    lines = told.lines()
    assert [found["event"] for found in lines] == ["task.created", "task.ended", "task.retrieved"]
    assert {found["task_id"] for found in lines} == {f"{task_id[:8]}…"}


async def test_polls_of_an_open_task_are_logged_at_debug(
    engine: TaskEngine, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    task_id = (await engine.submit(a_submission())).task_id
    told.lines()
    caplog.set_level(logging.DEBUG, logger=audit.LOGGER)
    await engine.get(ALICE, task_id)
    assert told.lines() == [line("task.retrieved", task_id, task_status="working")]


async def test_a_pushed_outcome_is_logged_once(world: World, engine: TaskEngine, told: Told) -> None:
    task_id = (await engine.submit(a_submission())).task_id
    told.lines()
    waiting = asyncio.create_task(engine.wait(ALICE, task_id))
    await asyncio.sleep(0)
    await engine.cancel(ALICE, task_id)
    await soon(waiting)
    assert told.lines() == [
        end(task_id, "cancelled"),
        line("task.retrieved", task_id, task_status="cancelled"),
    ]


async def test_the_end_is_logged_once_however_many_processes_report_it(world: World, told: Told) -> None:
    record = a_record()
    await world.store.create(record, a_submission().snapshot)
    statuses: list[TaskStatus] = ["failed", "completed", "cancelled", "working"]
    await asyncio.gather(
        *(world.store.change(record.ref, Change(to=status)) for status in statuses),
        *(asyncio.to_thread(world.ledger.change, record.ref, Change(to=status)) for status in statuses),
    )
    assert [found["event"] for found in told.lines()] == ["task.ended"]


async def test_an_end_that_the_reaper_records_is_logged(in_redis: RedisWorld, told: Told) -> None:
    record = a_record()
    await in_redis.store.create(record, a_submission().snapshot)
    recovery, policy = RedisRecovery(in_redis.store), RecoveryPolicy(heartbeat_ms=20, max_redeliveries=1)
    await recovery.beat("worker", 0)
    in_redis.ledger.claim(record.ref, attempt=1, claim=Claim("worker", 1))
    await in_redis.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1, worker="worker"))
    for verdict in ("failed", "nothing"):
        assert await recovery.recover(record.key, "worker", "died", policy) == verdict
    assert told.lines() == [end(record.task_id, "failed")]


async def test_a_request_for_another_callers_task_is_logged_as_refused_and_not_as_retrieved(
    engine: TaskEngine, told: Told
) -> None:
    task_id = (await engine.submit(a_submission())).task_id
    told.lines()
    strangers = {
        Caller("client-a|bob", ALICE.issuer): "unknown",
        Caller(ALICE.scope, "https://elsewhere.example"): "issuer",
        Caller(): "unknown",
    }
    for stranger, reason in strangers.items():
        for ask in (engine.get, engine.cancel, engine.find, engine.wait):
            with pytest.raises(TaskNotFoundError):
                await ask(stranger, task_id)
            assert told.lines() == [line("task.refused", f"{task_id[:8]}…", stranger.scope, reason=reason)]
        async with engine.watch(stranger, [task_id]):
            assert told.lines() == [line("task.refused", f"{task_id[:8]}…", stranger.scope, reason=reason)]


async def test_a_refusal_by_a_limit_is_logged_alone(world: World, queue: Watchful, told: Told) -> None:
    limits = replace(LIMITS, max_open_tasks=1, max_failed_lookups=1)
    engine = TaskEngine(
        store=world.store,
        queue=queue,
        bus=world.bus,
        results=None,
        limits=limits,
        answer_version=LATEST_HANDSHAKE_VERSION,
        observers=world.observers,
    )
    alice = replace(ALICE, requestor="alice")
    for deed, event in (
        (engine.submit(a_submission(alice)), "task.created"),
        (engine.get(alice, "no-such-task"), "task.refused"),
    ):
        with suppress(TaskNotFoundError):
            await deed
        assert [found["event"] for found in told.lines()] == [event]
    for deed, limit in (
        (engine.submit(a_submission(alice)), "open_tasks"),
        (engine.get(alice, "no-such-task"), "failed_lookups"),
    ):
        with pytest.raises(LimitExceededError):
            await deed
        assert told.lines() == [line("task.limited", None, limit=limit)]


@pytest.mark.parametrize("task_id", ["", "a\nevent=task.ended", "a b", "ü", "x" * 10_000])
async def test_a_malformed_id_is_not_repeated_in_the_log(engine: TaskEngine, told: Told, task_id: str) -> None:
    with pytest.raises(McpCeleryError):
        await engine.get(ALICE, task_id)
    async with engine.watch(ALICE, [task_id]):
        assert told.lines() == [line("task.refused", None, reason="malformed")] * 2


async def test_a_request_for_many_tasks_has_one_line_for_each_reason(engine: TaskEngine, told: Told) -> None:
    mine = [(await engine.submit(a_submission())).task_id for _ in range(2)]
    told.lines()
    gone = [f"gone-{number}" for number in range(1_000)]
    async with engine.watch(ALICE, [mine[0], *gone, "no id", "no id either"]) as watch:
        assert watch.accepted == mine[:1]
    malformed, unknown = told.lines()
    assert malformed == line("task.refused", None, reason="malformed", number="2")
    assert unknown == line("task.refused", "gone-0", reason="unknown", number="1000")
    stranger = Caller(ALICE.scope, "https://elsewhere.example")
    async with engine.watch(stranger, mine):
        assert told.lines() == [line("task.refused", f"{mine[0][:8]}…", reason="issuer", number="2")]


@pytest.mark.parametrize("part", ["a\nevent=task.created", 'a" task=forged', "\x1b[31m", " \u2028", "a\\", "ü" * 1000])
async def test_a_scope_begins_neither_a_line_nor_a_field(
    engine: TaskEngine, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    scope = scope_of("client-a", part)
    with caplog.at_level(logging.INFO, logger=audit.LOGGER), pytest.raises(TaskNotFoundError):
        await engine.get(Caller(scope), "task456")
    said = caplog.records[-1].getMessage()
    head, _, rest = said.partition(" scope=")
    found, end = json.JSONDecoder().raw_decode(rest)
    assert (head, rest[end:]) == ("event=task.refused", " task=task456 reason=unknown")
    assert found.removesuffix("…") == scope[:200]
    assert said.isascii()
    assert said.isprintable()
    assert len(said) < 1500
