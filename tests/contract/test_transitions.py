"""Each change of a task is reported once, with what it was before, in memory as in Redis."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest

from mcp_celery.engine import (
    MOVES,
    TERMINAL,
    Asking,
    Cause,
    Change,
    Claim,
    NextLeg,
    Observers,
    Progress,
    Question,
    RpcError,
    Start,
    Submission,
    TaskEngine,
    TaskRecord,
    TaskStatus,
    Transition,
    now_ms,
)
from mcp_celery.engine.recovery.model import Expiring, RecoveryPolicy, Sweep
from mcp_celery.engine.recovery.reaper import Reaper
from mcp_celery.errors import QueueUnavailableError
from mcp_celery.store import RedisRecovery
from mcp_celery.testing import MemoryTaskQueue
from tests.support.worlds import SNAPSHOT, RedisWorld, Watchful, World, a_record, a_submission, engine_of

pytestmark = pytest.mark.anyio

Told = tuple[Cause, TaskStatus | None, TaskStatus | None, int, int]
QUESTION: Final = Question("q", "roots/list", {})
POLICY: Final = RecoveryPolicy(heartbeat_ms=10, max_redeliveries=1)


def told(world: World) -> list[Told]:
    """What has been reported: cause, status before and after, attempt, leg."""
    return [(one.cause, one.before, one.after, one.attempt, one.leg) for one in world.transitions]


def asking(attempt: int = 1) -> Asking:
    return Asking(attempt=attempt, at_ms=now_ms())


async def created(world: World, record: TaskRecord | None = None) -> TaskRecord:
    record = record or a_record()
    await world.store.create(record, SNAPSHOT)
    world.transitions.clear()
    return record


async def brought_to(world: World, status: TaskStatus) -> TaskRecord:
    """A task that has a status."""
    record = await created(world)
    if status == "input_required":
        assert await world.store.ask(record.ref, QUESTION, asking())
    elif status != "working":
        assert await world.store.change(record.ref, Change(to=status))
    world.transitions.clear()
    return record


@pytest.mark.parametrize("target", [status for status in MOVES if status != "input_required"])
@pytest.mark.parametrize("source", MOVES)
async def test_every_move_of_the_status_table_is_reported_and_no_other(
    world: World, source: TaskStatus, target: TaskStatus
) -> None:
    record = await brought_to(world, source)
    changed = await world.store.change(record.ref, Change(to=target, status_message="news"))
    assert changed is not None
    assert changed.accepted == (target in MOVES[source])
    if not changed.accepted:
        assert told(world) == []
        return
    # While a question is open the task stays `input_required`.
    after: TaskStatus = "input_required" if (source, target) == ("input_required", "working") else target
    cause: Cause = "progress" if target not in TERMINAL else target  # pyright: ignore[reportAssignmentType]
    assert told(world) == [(cause, source, after, 1, 1)]


async def test_each_step_of_a_job_is_reported(world: World) -> None:
    record = await created(world)
    assert world.ledger.claim(record.ref, attempt=1, claim=Claim("w1", now_ms()))
    await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms(), worker="w1"))
    await world.store.change(record.ref, Change(to="working", attempt=1, progress=Progress(1, 2)))
    assert await world.store.ask(record.ref, QUESTION, asking())
    await world.store.answer(record.ref, {QUESTION.key: {"roots": []}}, at_ms=now_ms(), start_before_ms=None)
    await world.store.change(record.ref, Change(to="working", attempt=1, retries=1, retry_at_ms=now_ms()))
    await world.store.change(record.ref, Change(to="failed", attempt=1, error=RpcError(-32603, "no")))
    await world.store.retire(record.ref, now_ms() + 1_000)
    assert told(world) == [
        ("claimed", "working", "working", 1, 1),
        ("started", "working", "working", 1, 1),
        ("progress", "working", "working", 1, 1),
        ("asked", "working", "input_required", 1, 1),
        ("answered", "input_required", "working", 1, 1),
        ("retry_scheduled", "working", "working", 1, 1),
        ("failed", "working", "failed", 1, 1),
        ("retired", "failed", "failed", 1, 1),
    ]


async def test_the_start_of_a_job_that_no_worker_claimed_is_its_claim_too(world: World) -> None:
    record = await created(world)
    start = Start(attempt=1, retries=0, at_ms=now_ms(), delivery="d", worker="w1")
    for _ in range(2):  # asked again, as the answer was lost
        await world.store.start(record.ref, start)
    assert [one.cause for one in world.transitions if one.cause == "claimed"] == ["claimed"]
    assert [one[0] for one in told(world)[:2]] == ["claimed", "started"]
    assert not world.ledger.claim(record.ref, attempt=1, claim=Claim("w1", now_ms()))


async def test_a_report_says_which_task_and_when(world: World) -> None:
    template = "reports://{year}"
    task = replace(a_record(component="reports://2026"), task_type="resource", declared_as=template)
    record = await created(world, task)
    at_ms = now_ms() + 5
    await world.store.change(record.ref, Change(to="cancelled", at_ms=at_ms))
    assert world.transitions == [
        Transition(
            ref=record.ref,
            task_type="resource",
            component=template,
            before="working",
            after="cancelled",
            attempt=1,
            leg=1,
            cause="cancelled",
            at_ms=at_ms,
            created_at_ms=record.created_at_ms,
        )
    ]


async def test_a_report_says_since_when_and_whether_the_tool_has_failed(world: World) -> None:
    record = await created(world)
    at_ms = record.created_at_ms
    await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=at_ms + 20, worker="w1"))
    await world.store.change(record.ref, Change(to="completed", attempt=1, is_error=True, at_ms=at_ms + 50))
    _claimed, started, ended = world.transitions
    assert (started.started_at_ms, started.age_ms, started.is_error) == (at_ms + 20, 20, False)
    assert (ended.created_at_ms, ended.started_at_ms, ended.age_ms, ended.is_error) == (at_ms, at_ms + 20, 50, True)


async def test_a_parked_job_is_reported_with_the_next_one(world: World) -> None:
    record = await created(world)
    leg = NextLeg(leg=2, job_id=f"{record.job_id}!2", request_state=None)
    assert await world.store.park(record.ref, [QUESTION], asking(), leg)
    await world.store.answer(record.ref, {QUESTION.key: {"roots": []}}, at_ms=now_ms(), start_before_ms=None)
    assert told(world) == [
        ("parked", "working", "input_required", 2, 2),
        ("answered", "input_required", "working", 2, 2),
    ]


async def test_a_withdrawn_question_is_reported_once(world: World) -> None:
    record = await brought_to(world, "input_required")
    for _ in range(2):
        await world.store.withdraw(record.ref, [QUESTION.key], attempt=1, at_ms=now_ms())
    assert told(world) == [("withdrawn", "input_required", "working", 1, 1)]


async def test_a_body_that_starts_again_takes_back_what_it_asked(world: World) -> None:
    record = await brought_to(world, "input_required")
    assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms()))
    assert told(world) == [("started", "input_required", "working", 1, 1)]


async def test_a_refused_change_is_not_reported(world: World) -> None:
    record = await created(world)
    ref = record.ref
    assert not world.ledger.claim(ref, attempt=2, claim=Claim("w1", now_ms()))
    assert await world.store.start(ref, Start(attempt=2, retries=0, at_ms=now_ms())) is None
    assert not await world.store.ask(ref, QUESTION, asking(2))
    assert not await world.store.park(ref, [QUESTION], asking(2), NextLeg(leg=2, job_id="", request_state=None))
    await world.store.answer(ref, {QUESTION.key: {"roots": []}}, at_ms=now_ms(), start_before_ms=None)
    await world.store.retire(ref, record.expires_at_ms + 1)
    assert await world.store.change(a_record().ref, Change(to="failed")) is None
    assert world.transitions == []


async def test_a_submission_is_reported_when_its_job_is_published(world: World, engine: TaskEngine) -> None:
    record = await engine.submit(a_submission())
    assert told(world) == [("submitted", None, "working", 1, 1)]
    (submitted,) = world.transitions
    assert (submitted.ref, submitted.at_ms) == (record.ref, record.created_at_ms)


class _NoBroker(Watchful):
    async def publish(self, record: TaskRecord, submission: Submission) -> None:
        raise QueueUnavailableError


async def test_a_submission_that_is_taken_back_is_not_reported(world: World) -> None:
    queue = _NoBroker(world.store)
    engine = engine_of(world, queue)
    with pytest.raises(QueueUnavailableError):
        await engine.submit(a_submission())
    assert world.transitions == []


async def test_a_recovered_job_and_one_that_fails_are_reported(in_redis: RedisWorld) -> None:
    world, recovery = in_redis, RedisRecovery(in_redis.store)
    await recovery.beat("w1", 0)
    for _ in range(2):
        record = await created(world, replace(a_record(), idempotent=True))
        attempt = 1
        for _ in range(2):
            assert world.ledger.claim(record.ref, attempt=attempt, claim=Claim("w1", now_ms()))
            await recovery.recover(record.key, "w1", "died", POLICY)
            attempt += 1
        assert told(world) == [
            ("claimed", "working", "working", 1, 1),
            ("recovered", "working", "working", 2, 1),
            ("claimed", "working", "working", 2, 1),
            ("failed", "working", "failed", 2, 1),
        ]


class _OneSweep:
    """A recovery store of which one task has expired."""

    def __init__(self, key: str) -> None:
        self.expiring = Expiring(key, 0, leg=2, status="input_required", attempt=3, declared_as="reports://{year}")

    async def sweep(self, reaper: str, policy: RecoveryPolicy, skipped: int = 0) -> Sweep | None:
        return Sweep([], [self.expiring], [])

    def __getattr__(self, name: str) -> Callable[..., object]:
        raise AssertionError(name)


async def test_an_open_task_that_expires_is_reported_once(world: World) -> None:
    record = replace(a_record(component="reports://2026"), task_type="resource")
    reaper = Reaper(
        store=_OneSweep(record.key),  # pyright: ignore[reportArgumentType] - no other method may be called
        tasks=world.store,
        queue=MemoryTaskQueue(),
        results=world.results,  # pyright: ignore[reportArgumentType] - likewise
        declared=None,  # pyright: ignore[reportArgumentType] - likewise
        policy=POLICY,
        observers=world.observers,
    )
    before = now_ms()
    for _ in range(2):
        await reaper.sweep()
    assert told(world) == [("expired", "input_required", None, 3, 2)]
    assert (world.transitions[0].ref, world.transitions[0].component) == (record.ref, "reports://{year}")
    assert before <= world.transitions[0].at_ms <= now_ms()


async def test_a_failing_observer_affects_neither_the_task_nor_other_observers(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Transition] = []

    def broken(_: Transition) -> None:
        raise ValueError("no")

    transition = Transition.of_record(a_record(), "claimed", before="working", at_ms=1)
    with caplog.at_level(logging.ERROR):
        Observers(broken, seen.append).notify(transition)
    assert seen == [transition]
    assert "an observer of task transitions failed" in caplog.text


async def test_a_damaged_record_stops_no_reply(in_redis: RedisWorld, caplog: pytest.LogCaptureFixture) -> None:
    record = await created(in_redis)
    in_redis.client.hset(in_redis.keys.record(record.scope, record.task_id), "leg", "many")
    assert in_redis.ledger.claim(record.ref, attempt=1, claim=Claim("w1", now_ms()))
    assert "could not report a change of a task, whose record is damaged" in caplog.text
    assert in_redis.transitions == []
