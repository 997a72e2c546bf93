"""What every store does, told once for memory and Redis: records, changes, claims, starts and expiry."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_celery.engine import (
    MOVES,
    Asking,
    Change,
    Changed,
    Claim,
    Extension,
    JobLedger,
    JobOutcome,
    Progress,
    Question,
    RpcError,
    Start,
    TaskBus,
    TaskQueue,
    TaskRecord,
    TaskRef,
    TaskResults,
    TaskStatus,
    TaskStore,
    now_ms,
)
from mcp_celery.errors import SnapshotUnreadableError
from mcp_celery.keys import Hidden
from mcp_celery.testing import MemoryTaskBus, MemoryTaskQueue, MemoryTaskResults, MemoryTaskStore
from tests.support.waiting import eventually
from tests.support.worlds import SNAPSHOT, RedisWorld, World, a_record

pytestmark = pytest.mark.anyio

STATUSES: tuple[TaskStatus, ...] = get_args(TaskStatus)
CLAIM = Claim("celery@host", 1_790_000_000_000)
NOWHERE = TaskRef("client-a|alice", "no-such-task")


async def created(world: World, **values: object) -> TaskRecord:
    record = a_record(**values)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    await world.store.create(record, SNAPSHOT)
    return record


async def load(world: World, ref: TaskRef) -> TaskRecord | None:
    stored = await world.store.load(ref)
    return None if stored is None else stored.record


async def accepted(world: World, ref: TaskRef, change: Change) -> TaskRecord:
    changed = await world.store.change(ref, change)
    assert changed is not None
    assert changed.accepted
    return changed.record


async def test_the_memory_implementations_fulfil_the_ports() -> None:
    """Pyright reads these lines; what they do is checked by the rest of this suite."""
    bus: TaskBus = MemoryTaskBus()
    results: TaskResults = MemoryTaskResults()
    queue: TaskQueue = MemoryTaskQueue()
    store: TaskStore = MemoryTaskStore(MemoryTaskBus())
    ledger: JobLedger = MemoryTaskStore(MemoryTaskBus()).ledger
    assert all((bus, results, queue, store, ledger))


class TestRecords:
    async def test_a_new_record_is_found_as_it_was_created(self, world: World) -> None:
        record = await created(world)
        assert await load(world, record.ref) == record

    async def test_a_record_is_found_under_its_own_scope_only(self, world: World) -> None:
        record = await created(world)
        for scope in (None, "", "client-a", "client-a|bob"):
            assert await load(world, TaskRef(scope, record.task_id)) is None

    async def test_an_anonymous_record_is_found_by_no_other_caller(self, world: World) -> None:
        record = await created(world, scope=None)
        assert await load(world, record.ref) == record
        assert await load(world, TaskRef("anon", record.task_id)) is None

    async def test_a_deleted_record_is_gone_with_its_snapshot(self, world: World) -> None:
        record = await created(world)
        await world.store.delete(record.ref)
        assert await load(world, record.ref) is None
        assert await world.store.change(record.ref, Change(to="completed")) is None
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1)) is None
        await world.store.delete(record.ref)

    @pytest.mark.parametrize("status", ["failed", "cancelled"])
    async def test_a_task_without_a_result_is_read_from_its_record_alone(
        self, world: World, status: TaskStatus
    ) -> None:
        record = await created(world)
        world.put_result(record.job_id, "SUCCESS", JobOutcome({"content": []}))
        await accepted(world, record.ref, Change(to=status))
        stored = await world.store.load(record.ref)
        assert stored is not None
        assert stored.result is None

    @pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
    async def test_the_request_is_forgotten_when_its_task_ends(self, world: World, status: TaskStatus) -> None:
        """Its arguments and the sealed token of its caller are of no use any more."""
        record = await created(world)
        assert await world.store.snapshot(record.ref) == SNAPSHOT
        await accepted(world, record.ref, Change(to=status))
        assert await world.store.snapshot(record.ref) is None
        left = await load(world, record.ref)
        assert left is not None
        assert left.status == status

    async def test_a_record_whose_job_has_begun_is_not_deleted(self, world: World) -> None:
        record = await created(world)
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1))
        assert not await world.store.delete(record.ref)
        assert await load(world, record.ref) == replace(record, started_at_ms=1)
        assert await world.store.snapshot(record.ref) == SNAPSHOT

    async def test_an_unknown_task_is_none_to_every_call(self, world: World) -> None:
        assert await load(world, NOWHERE) is None
        assert await world.store.change(NOWHERE, Change(to="working")) is None
        assert await world.store.start(NOWHERE, Start(attempt=1, retries=0, at_ms=1)) is None
        assert world.ledger.change(NOWHERE, Change(to="working")) is None
        assert world.ledger.claim(NOWHERE, attempt=1, claim=CLAIM) is False
        assert world.told(NOWHERE) == 0

    @pytest.mark.parametrize(
        ("scope", "component"),
        [
            ("https://client.example/?a=1#b|alice@example.org", "file:///a b/%41~!?x=1#y:z"),
            ("任务|🙂", "prompt 🙂"),
            ("s" * 2_000, "c" * 2_000),
            ("*[?]", "{}"),
            (None, "a\nb\0c"),
        ],
        ids=["urls", "unicode", "long", "glob", "control characters"],
    )
    async def test_scopes_and_components_may_be_anything(self, world: World, scope: str | None, component: str) -> None:
        record = await created(world, scope=scope, component=component)
        assert await load(world, record.ref) == record
        assert world.ledger.claim(record.ref, attempt=1, claim=CLAIM)
        await accepted(world, record.ref, Change(to="completed"))
        assert world.told(record.ref) == 1


class TestChanges:
    @pytest.mark.parametrize("target", STATUSES)
    async def test_a_working_task_may_move_to_any_allowed_status(self, world: World, target: TaskStatus) -> None:
        record = await created(world)
        change = Change(to=target, at_ms=record.created_at_ms + 5)
        expected = replace(record, status=target, updated_at_ms=record.created_at_ms + 5, revision=2)
        assert await world.store.change(record.ref, change) == Changed(True, expected)
        assert await load(world, record.ref) == expected

    @pytest.mark.parametrize("target", STATUSES)
    @pytest.mark.parametrize("terminal", ["completed", "failed", "cancelled"])
    async def test_a_terminal_status_is_final(self, world: World, terminal: TaskStatus, target: TaskStatus) -> None:
        record = await created(world)
        ended = await accepted(world, record.ref, Change(to=terminal, status_message="the end"))
        late = Change(to=target, status_message="too late", is_error=True, error=RpcError(1, "x"), at_ms=now_ms() + 99)
        for refuse in (world.store.change(record.ref, late), asyncio.to_thread(world.ledger.change, record.ref, late)):
            assert await refuse == Changed(False, ended)
        assert await load(world, record.ref) == ended
        assert world.told(record.ref) == 1

    async def test_the_ledger_and_the_store_change_the_same_record(self, world: World) -> None:
        record = await created(world)
        first = world.ledger.change(record.ref, Change(to="working", status_message="one"))
        assert first is not None
        assert first.record.revision == 2
        second = await accepted(world, record.ref, Change(to="input_required"))
        assert (second.status_message, second.revision) == ("one", 3)
        third = world.ledger.change(record.ref, Change(to="completed"))
        assert third is not None
        assert (third.accepted, third.record.revision) == (True, 4)
        assert world.told(record.ref) == 3

    async def test_a_change_of_another_attempt_is_refused(self, world: World) -> None:
        record = await created(world, attempt=2)
        for attempt in (1, 3, 22):
            assert await world.store.change(record.ref, Change(to="completed", attempt=attempt)) == Changed(
                False, record
            )
        assert world.told(record.ref) == 0
        await accepted(world, record.ref, Change(to="working", attempt=2))
        await accepted(world, record.ref, Change(to="completed", attempt=None))

    async def test_a_change_sets_every_field_that_it_names(self, world: World) -> None:
        record = await created(world)
        error = RpcError(-32001, "No such year", {"year": [1, None, "ü"]})
        change = Change(
            to="failed",
            status_message="No such year",
            error=error,
            progress=Progress(3, 10),
            is_error=True,
            at_ms=record.created_at_ms + 5,
        )
        read = await accepted(world, record.ref, change)
        assert read == await load(world, record.ref)
        assert (read.status_message, read.error, read.progress, read.is_error) == (
            "No such year", error, Progress(3, 10), True,
        )  # fmt: skip
        assert read.updated_at_ms == change.at_ms
        assert read.created_at_ms == record.created_at_ms

    async def test_a_change_keeps_the_fields_that_it_does_not_name(self, world: World) -> None:
        record = await created(world)
        await accepted(world, record.ref, Change(to="working", status_message="half", progress=Progress(0.5)))
        read = await accepted(world, record.ref, Change(to="working"))
        assert (read.status_message, read.progress) == ("half", Progress(0.5))

    async def test_an_empty_message_takes_the_old_one_away(self, world: World) -> None:
        record = await created(world)
        await accepted(world, record.ref, Change(to="working", status_message="half"))
        assert (await accepted(world, record.ref, Change(to="working", status_message=""))).status_message is None

    @pytest.mark.parametrize(
        "message", ["ü 🙂\n\0", "m" * 100_000, "lone \udcff surrogate"], ids=["odd", "long", "lone"]
    )
    async def test_a_message_of_any_characters_is_accepted(self, world: World, message: str) -> None:
        record = await created(world)
        read = await accepted(world, record.ref, Change(to="working", status_message=message))
        assert read.status_message is not None
        assert len(read.status_message) == len(message)

    async def test_reading_claiming_and_starting_leave_revision_and_times(self, world: World) -> None:
        record = await created(world)
        await load(world, record.ref)
        assert world.ledger.claim(record.ref, attempt=1, claim=CLAIM)
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms() + 99))
        read = await load(world, record.ref)
        assert read is not None
        assert (read.revision, read.updated_at_ms) == (record.revision, record.updated_at_ms)
        assert world.told(record.ref) == 0


class TestClaims:
    async def test_the_worker_that_received_a_job_is_noted(self, world: World) -> None:
        record = await created(world)
        assert world.ledger.claim(record.ref, attempt=1, claim=CLAIM)
        assert await load(world, record.ref) == replace(record, claim=CLAIM)

    async def test_a_later_claim_takes_the_place_of_an_earlier_one(self, world: World) -> None:
        record = await created(world)
        assert world.ledger.claim(record.ref, attempt=1, claim=CLAIM)
        other = Claim("celery@other", CLAIM.at_ms + 1)
        assert world.ledger.claim(record.ref, attempt=1, claim=other)
        assert await load(world, record.ref) == replace(record, claim=other)

    async def test_a_claim_for_another_attempt_is_refused(self, world: World) -> None:
        record = await created(world, attempt=2)
        assert not world.ledger.claim(record.ref, attempt=1, claim=CLAIM)
        assert await load(world, record.ref) == record

    async def test_a_task_that_waits_for_input_can_be_claimed(self, world: World) -> None:
        record = await created(world)
        await accepted(world, record.ref, Change(to="input_required"))
        assert world.ledger.claim(record.ref, attempt=1, claim=CLAIM)

    @pytest.mark.parametrize("terminal", ["completed", "failed", "cancelled"])
    async def test_a_task_that_has_ended_cannot_be_claimed(self, world: World, terminal: TaskStatus) -> None:
        record = await created(world)
        ended = await accepted(world, record.ref, Change(to=terminal))
        assert not world.ledger.claim(record.ref, attempt=1, claim=CLAIM)
        assert await load(world, record.ref) == ended


class TestStarts:
    async def test_the_snapshot_can_be_read_before_and_after_a_start(self, world: World) -> None:
        record = await created(world)
        assert await world.store.snapshot(record.ref) == SNAPSHOT
        await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1))
        assert await world.store.snapshot(record.ref) == SNAPSHOT
        assert await world.store.snapshot(NOWHERE) is None

    async def test_a_body_starts_with_the_snapshot_of_the_request(self, world: World) -> None:
        record = await created(world)
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1_790_000_000_000)) == SNAPSHOT
        assert await load(world, record.ref) == replace(record, started_at_ms=1_790_000_000_000)

    async def test_a_message_with_another_key_of_the_task_starts_nothing(self, world: World) -> None:
        record = await created(world)
        for forged in (replace(record, component="other").key, replace(record, task_type="prompt").key, "no key"):
            assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1, key=forged)) is None
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1, key=record.key)) == SNAPSHOT

    async def test_a_body_starts_once_for_each_attempt_and_retry(self, world: World) -> None:
        record = await created(world)
        granted = [
            await world.store.start(record.ref, Start(attempt=1, retries=retries, at_ms=retries)) is not None
            for retries in (0, 0, 1, 1, 0, 10, 9, 10, 11)
        ]
        assert granted == [True, False, True, False, False, True, False, False, True]

    async def test_of_many_deliveries_at_once_one_starts(self, world: World) -> None:
        record = await created(world)
        started = await asyncio.gather(
            *(world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=number)) for number in range(20))
        )
        assert len([one for one in started if one is not None]) == 1

    async def test_a_delivery_whose_answer_was_lost_may_ask_again(self, world: World) -> None:
        record = await created(world)
        for _ in range(3):
            assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1, delivery="one")) == SNAPSHOT
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1, delivery="two")) is None
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1)) is None
        assert await world.store.start(record.ref, Start(attempt=1, retries=1, at_ms=1, delivery="two")) == SNAPSHOT
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1, delivery="one")) is None

    async def test_a_delivery_of_another_attempt_does_not_start(self, world: World) -> None:
        record = await created(world, attempt=2)
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1)) is None
        assert await world.store.start(record.ref, Start(attempt=3, retries=0, at_ms=1)) is None
        assert await load(world, record.ref) == record

    @pytest.mark.parametrize("status", ["input_required", "completed", "failed", "cancelled"])
    async def test_only_a_working_task_starts(self, world: World, status: TaskStatus) -> None:
        record = await created(world)
        changed = await accepted(world, record.ref, Change(to=status))
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1)) is None
        assert await load(world, record.ref) == changed


class TestClaimsAndStarts:
    async def test_a_claim_stays_with_the_worker_that_began(self, world: World) -> None:
        record = await created(world)
        other = Claim("celery@other", 1)
        assert world.ledger.claim(record.ref, attempt=1, claim=CLAIM)
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1))
        assert not world.ledger.claim(record.ref, attempt=1, claim=other)
        assert not world.ledger.claim(record.ref, attempt=1, retries=0, claim=other)
        assert (await load(world, record.ref)) == replace(record, claim=CLAIM, started_at_ms=1)
        assert world.ledger.claim(record.ref, attempt=1, retries=1, claim=other)
        assert (await load(world, record.ref)) == replace(record, claim=other, started_at_ms=1)

    async def test_a_worker_that_starts_an_unclaimed_job_claims_it(self, world: World) -> None:
        record = await created(world)
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=7, worker="celery@host"))
        assert (await load(world, record.ref)) == replace(record, claim=Claim("celery@host", 7), started_at_ms=7)

    async def test_a_worker_that_starts_a_job_keeps_the_time_of_the_first_claim(self, world: World) -> None:
        record = await created(world)
        assert world.ledger.claim(record.ref, attempt=1, claim=CLAIM)
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=7, worker="celery@other"))
        expected = replace(record, claim=replace(CLAIM, worker="celery@other"), started_at_ms=7)
        assert (await load(world, record.ref)) == expected

    async def test_a_change_for_a_job_that_has_not_begun_is_refused_once_it_has(self, world: World) -> None:
        record = await created(world)
        late = Change(to="failed", unless_begun=0)
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1))
        refused = await world.store.change(record.ref, late)
        assert refused == Changed(False, replace(record, started_at_ms=1))
        unstarted = await created(world)
        assert world.ledger.claim(unstarted.ref, attempt=1, claim=CLAIM)
        assert (await accepted(world, unstarted.ref, late)).status == "failed"


class TestExpiry:
    async def test_a_task_that_is_retired_goes_sooner(self, world: World) -> None:
        record = await created(world)
        asking = Asking(attempt=1, at_ms=1)
        assert await world.store.ask(record.ref, Question("q", "roots/list", {}), asking)

        async def ttl_after(end_ms: int) -> int | None:
            await world.store.retire(record.ref, record.created_at_ms + end_ms)
            stored = await world.store.load(record.ref)
            return None if stored is None else stored.record.ttl_ms

        assert await ttl_after(record.ttl_ms + 1) == record.ttl_ms  # it goes at its time at the latest
        assert await ttl_after(30_000) == 30_000
        await world.store.retire(record.ref, record.created_at_ms + 1)

        async def gone() -> bool:
            return await load(world, record.ref) is None and await world.store.snapshot(record.ref) is None

        await eventually(gone)
        assert not await world.store.ask(record.ref, Question("r", "roots/list", {}), asking)

    async def test_a_task_that_was_to_go_sooner_can_be_kept_while_it_is_open(self, world: World) -> None:
        record = await created(world)
        asking = Asking(attempt=1, at_ms=1)
        assert await world.store.ask(record.ref, Question("q", "roots/list", {}), asking)

        async def ttl_after(end_ms: int, most_ms: int) -> int | None:
            await world.store.keep(record.ref, Extension(record.created_at_ms + end_ms, most_ms))
            stored = await world.store.load(record.ref)
            return None if stored is None else stored.record.ttl_ms

        await world.store.retire(record.ref, record.created_at_ms + 30_000)
        assert await ttl_after(20_000, 90_000) == 30_000
        assert await ttl_after(40_000, 90_000) == 40_000
        assert await ttl_after(100_000, 90_000) == 90_000
        await accepted(world, record.ref, Change(to="cancelled"))
        assert await ttl_after(100_000, 100_000) == 90_000
        await world.store.keep(TaskRef(None, "nobody"), Extension(record.created_at_ms + 1, 1))

    async def test_all_that_belongs_to_a_kept_task_stays_with_it(self, in_redis: RedisWorld) -> None:
        record = await created(in_redis)
        assert await in_redis.store.ask(record.ref, Question("q", "roots/list", {}), Asking(attempt=1, at_ms=1))
        await in_redis.store.retire(record.ref, record.created_at_ms + 30_000)
        await in_redis.store.keep(record.ref, Extension(record.created_at_ms + 900_000, 900_000))
        client: Any = in_redis.client
        lives = {key.decode(): client.pttl(key) for key in client.keys(f"{in_redis.prefix}:*")}
        assert len(lives) >= 3
        assert {name for name, left_ms in lives.items() if left_ms <= 30_000} == set()

    async def test_all_that_belongs_to_a_retired_task_goes_with_it(self, in_redis: RedisWorld) -> None:
        record = await created(in_redis, scope="s" * 200)  # its Celery id is shortened
        in_redis.put_result(record.job_id, "SUCCESS", JobOutcome({"content": []}))
        assert await in_redis.store.ask(record.ref, Question("q", "roots/list", {}), Asking(attempt=1, at_ms=1))

        def kept() -> list[str]:
            """Everything but the indexes."""
            return [key for key in map(bytes.decode, in_redis.tasks_keys_left()) if ":list:" not in key]

        assert len(kept()) >= 5
        await in_redis.store.retire(record.ref, 1)
        await eventually(lambda: not kept(), what="nothing is left")

    async def test_a_record_is_forgotten_when_its_ttl_ends(self, world: World) -> None:
        record = await created(world, ttl_ms=60)

        async def gone() -> bool:
            return await load(world, record.ref) is None

        await eventually(gone)
        assert now_ms() >= record.expires_at_ms
        assert await world.store.change(record.ref, Change(to="completed")) is None
        assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1)) is None
        assert not world.ledger.claim(record.ref, attempt=1, claim=CLAIM)
        assert world.told(record.ref) == 0

    async def test_changes_do_not_extend_the_ttl(self, world: World) -> None:
        record = await created(world, ttl_ms=150)

        async def refused() -> bool:
            world.ledger.claim(record.ref, attempt=1, claim=CLAIM)
            return await world.store.change(record.ref, Change(to="working", status_message="still here")) is None

        await eventually(refused)
        assert await load(world, record.ref) is None


class TestFind:
    @pytest.mark.parametrize("scope", ["alice", "s" * 500, None], ids=["whole", "shortened", "anonymous"])
    @pytest.mark.parametrize("leg", [1, 3])
    async def test_a_record_is_found_by_the_id_of_its_current_job(
        self, world: World, scope: str | None, leg: int
    ) -> None:
        record = await created(world, scope=scope, leg=leg)
        assert world.ledger.find(record.job_id) == record

    async def test_a_task_is_found_by_an_id_that_hides_its_own(self, in_redis: RedisWorld) -> None:
        record = replace(a_record(scope=None), hidden=Hidden.TASK_ID, issuer=None)
        await in_redis.store.create(record, SNAPSHOT)
        assert record.task_id not in record.job_id
        assert in_redis.ledger.find(record.job_id) == await load(in_redis, record.ref) == record
        assert in_redis.ledger.find(replace(record, hidden=Hidden.NOTHING).job_id) is None

    @pytest.mark.parametrize("scope", ["alice", "s" * 500], ids=["whole", "shortened"])
    async def test_a_job_of_another_leg_is_not_the_task(self, world: World, scope: str) -> None:
        record = await created(world, scope=scope)
        assert world.ledger.find(f"{record.job_id}!2") is None

    @pytest.mark.parametrize("job_id", ["", "4c4b0ba4-0d8a-4a2a-8e56-0c6e3bd1c2f5", "anon:gone:tool:x", "~~", "a!b!c"])
    async def test_a_job_of_no_task_is_not_found(self, world: World, job_id: str) -> None:
        await created(world)
        assert world.ledger.find(job_id) is None


class TestInRedisOnly:
    async def test_record_snapshot_alias_and_list_expire_with_the_task(self, in_redis: RedisWorld) -> None:
        record = await created(in_redis, scope="s" * 500)
        changes = {Change(to="working", status_message="x"): 4, Change(to="completed"): 3}  # the snapshot goes first
        for change, keys in changes.items():
            changed = await accepted(in_redis, record.ref, change)
            if changed.is_terminal:
                in_redis.ledger.claim(record.ref, attempt=1, claim=CLAIM)
            names = in_redis.tasks_keys_left()
            assert len(names) == keys
            for name in names:
                assert 0 < int(str(in_redis.client.pttl(name))) <= record.ttl_ms

    async def test_an_id_that_holds_its_key_needs_no_alias(self, in_redis: RedisWorld) -> None:
        await created(in_redis)
        assert len(in_redis.tasks_keys_left()) == 3

    async def test_a_task_is_found_by_an_id_that_hides_its_own(self, in_redis: RedisWorld) -> None:
        record = replace(a_record(scope=None), hidden=Hidden.TASK_ID, issuer=None)
        await in_redis.store.create(record, SNAPSHOT)
        assert record.task_id not in record.job_id
        assert in_redis.ledger.find(record.job_id) == await load(in_redis, record.ref) == record
        assert in_redis.ledger.find(replace(record, hidden=Hidden.NOTHING).job_id) is None

    @pytest.mark.parametrize("scope", ["alice", "s" * 500], ids=["whole", "shortened"])
    async def test_a_task_that_is_taken_back_leaves_only_a_mark_that_it_was(
        self, in_redis: RedisWorld, scope: str
    ) -> None:
        record = await created(in_redis, scope=scope)
        await in_redis.store.delete(record.ref)
        assert in_redis.keys_left() == [in_redis.keys.deleted(record.scope, record.task_id).encode()]

    async def test_a_body_does_not_start_without_the_snapshot(self, in_redis: RedisWorld) -> None:
        record = await created(in_redis)
        in_redis.client.delete(in_redis.keys.snapshot(record.scope, record.task_id))
        with pytest.raises(SnapshotUnreadableError, match="cannot be restored"):
            await in_redis.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1))
        assert await in_redis.store.snapshot(record.ref) is None

    @pytest.mark.parametrize("stored", ["", "{", "[]", "{}", "v1.sealed", "\xff"])
    async def test_a_snapshot_that_cannot_be_read_is_an_error(self, in_redis: RedisWorld, stored: str) -> None:
        record = await created(in_redis)
        name = in_redis.keys.snapshot(record.scope, record.task_id)
        in_redis.client.set(name, stored.encode("latin-1"), keepttl=True)
        with pytest.raises(SnapshotUnreadableError):
            await in_redis.store.snapshot(record.ref)
        with pytest.raises(SnapshotUnreadableError):
            await in_redis.store.start(record.ref, Start(attempt=1, retries=0, at_ms=1))


changes = st.builds(
    Change,
    to=st.sampled_from(STATUSES),
    attempt=st.sampled_from([None, 1, 2]),
    status_message=st.sampled_from([None, "", "message"]),
    at_ms=st.integers(1, 2**40),
)
calls = st.one_of(
    st.tuples(st.sampled_from(["store", "ledger"]), changes),
    st.tuples(st.just("claim"), st.integers(1, 2)),
    st.tuples(st.just("start"), st.integers(0, 2)),
)


async def called(world: World, ref: TaskRef, call: tuple[str, object]) -> object:
    match call:
        case ("store", Change() as change):
            return await world.store.change(ref, change)
        case ("ledger", Change() as change):
            return await asyncio.to_thread(world.ledger.change, ref, change)
        case ("claim", int(attempt)):
            return await asyncio.to_thread(world.ledger.claim, ref, attempt=attempt, claim=CLAIM)
        case ("start", int(retries)):
            return await world.store.start(ref, Start(attempt=1, retries=retries, at_ms=retries)) and retries
        case _:
            raise AssertionError(call)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(calls, min_size=1, max_size=12))
async def test_no_interleaving_breaks_the_status_table(world: World, made: list[tuple[str, object]]) -> None:
    record = await created(world)
    answers = await asyncio.gather(*(called(world, record.ref, call) for call in made))

    moves = sorted(
        (one.record for one in answers if isinstance(one, Changed) and one.accepted), key=lambda one: one.revision
    )
    statuses: list[TaskStatus] = [record.status, *(one.status for one in moves)]
    assert all(after in MOVES[before] for before, after in itertools.pairwise(statuses))
    assert [one.revision for one in moves] == list(range(2, len(moves) + 2))
    assert sum(one.is_terminal for one in moves) <= 1
    assert world.told(record.ref) == len(moves)

    starts = [one for (name, _), one in zip(made, answers, strict=True) if name == "start" and one is not None]
    assert len(starts) == len(set(starts))
    last = await load(world, record.ref)
    assert last is not None
    assert (last.status, last.revision) == (statuses[-1], len(moves) + 1)
