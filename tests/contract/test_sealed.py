"""With encryption keys, who can write to the store cannot ask, answer or change what a job keeps for the next one."""

import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from mcp_celery.engine import (
    Asking,
    Change,
    Extension,
    NextLeg,
    Question,
    RpcError,
    Start,
    TaskRecord,
    TaskRef,
    failure,
    now_ms,
)
from mcp_celery.errors import SnapshotUnreadableError, StoredDataError
from mcp_celery.sealing import UNSEALED
from mcp_celery.server.keyring import snapshots_with
from mcp_celery.store.fields import FIXED
from mcp_celery.store.sealed import CLOCK_SKEW_MS
from tests.support.leaks import no_eternal_keys
from tests.support.worlds import SNAPSHOT, RedisWorld, a_record

pytestmark = pytest.mark.anyio

KEY = "a key for tests that has more than 32 bytes"
QUESTION = Question("2.name", "elicitation/create", {"message": "planted question"})
ANSWER = {"action": "accept", "content": {"name": "planted answer"}}


@pytest.fixture
async def sealed(store_url: str) -> AsyncGenerator[RedisWorld]:
    """A store with keys."""
    world = RedisWorld(store_url, snapshots=snapshots_with([KEY]))
    try:
        with no_eternal_keys(store_url, [world.prefix]):
            yield world
    finally:
        world.client.delete(*world.keys_left())
        await world.aclose()


async def created(world: RedisWorld) -> TaskRecord:
    record = a_record()
    await world.store.create(record, SNAPSHOT)
    return record


def asking() -> Asking:
    return Asking(attempt=1, at_ms=now_ms())


async def parked(world: RedisWorld, state: str | None = "planted state") -> TaskRecord:
    """A task whose next job waits for an answer."""
    record = await created(world)
    leg = NextLeg(leg=2, job_id=f"{record.job_id}!2", request_state=state)
    question = replace(QUESTION, key="1.name")
    assert await world.store.park(record.ref, [question], asking(), leg)
    await world.store.answer(record.ref, {question.key: ANSWER}, at_ms=now_ms(), start_before_ms=None)
    return record


def contents(world: RedisWorld) -> str:
    """Everything that Redis holds of this world, as text."""
    client: Any = world.client
    found: list[bytes] = []
    for key in world.keys_left():
        found += [client.get(key)] if client.type(key) == b"string" else [client.dump(key)]
        if client.type(key) == b"hash":
            found += client.hgetall(key).values()
    return " ".join(one.decode(errors="replace") for one in found)


async def test_no_content_of_component_or_caller_can_be_read(sealed: RedisWorld) -> None:
    record = await created(sealed)
    await sealed.store.change(record.ref, Change(to="working", status_message="planted message"))
    assert await sealed.store.ask(record.ref, QUESTION, asking())
    await parked(sealed)
    failed = await created(sealed)
    await sealed.store.change(
        failed.ref, Change(to="failed", error=RpcError(-32000, "planted error", {"a": "planted"}))
    )
    assert "planted" not in contents(sealed)
    stored = await sealed.store.load(record.ref)
    assert stored is not None
    assert (stored.record.status_message, stored.questions) == ("planted message", [QUESTION])
    stored = await sealed.store.load(failed.ref)
    assert stored is not None
    assert stored.record.error == RpcError(-32000, "planted error", {"a": "planted"})


async def test_the_next_job_gets_the_answers_and_state_that_were_kept_for_it(sealed: RedisWorld) -> None:
    record = await parked(sealed)
    snapshot = await sealed.store.start(record.ref, Start(attempt=2, retries=0, at_ms=now_ms()))
    assert snapshot is not None
    assert snapshot.params["inputResponses"] == {"name": ANSWER}
    assert snapshot.params["requestState"] == "planted state"


@pytest.mark.parametrize(("field", "forged"), [("", '"forged state"'), ("1.name", '{"result": {"action": "accept"}}')])
async def test_a_forged_answer_or_state_does_not_reach_the_next_job(
    sealed: RedisWorld, field: str, forged: str
) -> None:
    record, other = await parked(sealed), await parked(sealed, "another state")
    answers, others = (sealed.keys.answers(one.scope, one.task_id) for one in (record, other))
    for value in (forged, sealed.client.hget(others, field)):
        sealed.client.hset(answers, field, value)
        with pytest.raises(SnapshotUnreadableError) as refused:
            await sealed.store.start(record.ref, Start(attempt=2, retries=0, at_ms=now_ms(), delivery="d"))
        assert "an answer or the state of the job before" in refused.value.reason


async def test_a_forged_answer_is_not_used(sealed: RedisWorld) -> None:
    record = await created(sealed)
    assert await sealed.store.ask(record.ref, QUESTION, asking())
    answers = sealed.keys.answers(record.scope, record.task_id)
    sealed.client.hset(answers, QUESTION.key, '{"result": {"action": "accept", "content": {}}}')
    sealed.client.expire(answers, 60)
    with pytest.raises(StoredDataError) as refused:
        await sealed.store.heard(record.ref, QUESTION.key, attempt=1)
    assert "it is not sealed" in refused.value.reason


async def test_a_forged_question_is_not_shown(sealed: RedisWorld, caplog: pytest.LogCaptureFixture) -> None:
    record = await created(sealed)
    assert await sealed.store.ask(record.ref, QUESTION, asking())
    questions = sealed.keys.questions(record.scope, record.task_id)
    sealed.client.hset(questions, "forged", '9:{"method": "roots/list"}')
    with caplog.at_level(logging.ERROR):
        stored = await sealed.store.load(record.ref)
    assert stored is not None
    assert stored.questions == [QUESTION]
    assert "removed 'forged'" in caplog.text


@pytest.mark.parametrize("keys", [(), ("another " + KEY,)], ids=["no keys", "other keys"])
async def test_a_process_that_cannot_open_a_question_leaves_it_to_others(
    sealed: RedisWorld, store_url: str, keys: Sequence[str], caplog: pytest.LogCaptureFixture
) -> None:
    record = await created(sealed)
    assert await sealed.store.ask(record.ref, QUESTION, asking())
    snapshots = snapshots_with(keys) if keys else UNSEALED
    other = RedisWorld(store_url, prefix=sealed.prefix, snapshots=snapshots)
    try:
        (found,) = await other.store.load_many([record.ref])
        if keys:
            assert found is None
            with pytest.raises(StoredDataError):
                await other.store.load(record.ref)
        else:
            assert found is not None
            assert await other.store.load(record.ref) == found
            assert list(found.questions) == []
            assert "left a question out of a task: it is sealed" in caplog.text
    finally:
        await other.aclose()
    stored = await sealed.store.load(record.ref)
    assert stored is not None
    assert stored.questions == [QUESTION]


@pytest.mark.parametrize("field", FIXED)
async def test_no_job_runs_beside_a_record_in_which_a_fixed_field_was_changed(sealed: RedisWorld, field: str) -> None:
    record = await created(sealed)
    key = sealed.keys.record(record.scope, record.task_id)
    sealed.client.hset(key, field, "1234")
    with pytest.raises(SnapshotUnreadableError) as refused:
        await sealed.store.start(record.ref, Start(attempt=1, retries=0, at_ms=now_ms()))
    assert refused.value.reason == "it was sealed for another place"
    with pytest.raises(SnapshotUnreadableError):
        await sealed.store.snapshot(record.ref)


async def test_a_forged_error_is_not_shown(sealed: RedisWorld) -> None:
    record = await created(sealed)
    await sealed.store.change(record.ref, Change(to="failed", error=RpcError(-32000, "no")))
    sealed.client.hset(sealed.keys.record(record.scope, record.task_id), "error", '[-32000, "forged", null]')
    with pytest.raises(StoredDataError):
        await sealed.store.load(record.ref)


async def test_a_reason_of_the_librarys_own_is_readable_with_other_keys(sealed: RedisWorld, store_url: str) -> None:
    """A worker whose keys are not the server's fails each task, and the server says why."""
    record = await created(sealed)
    worker = RedisWorld(store_url, prefix=sealed.prefix, snapshots=snapshots_with(["another " + KEY]))
    try:
        with pytest.raises(StoredDataError):  # it has moved the task, and cannot read what that is now
            await worker.store.change(record.ref, failure("SnapshotUnreadableError"))
    finally:
        await worker.aclose()
    stored = await sealed.store.load(record.ref)
    assert stored is not None
    assert stored.record.error == failure("SnapshotUnreadableError").error


class TestRecords:
    """Fixed fields are signed, for scripts have to read them."""

    async def refused(self, world: RedisWorld, ref: TaskRef) -> str:
        """Why a record is not read."""
        with pytest.raises(StoredDataError) as refused:
            await world.store.load(ref)
        assert refused.value.fault == "refused"
        assert "MCP_CELERY_ENCRYPTION_KEYS" in str(refused.value)
        with pytest.raises(StoredDataError):
            await world.store.change(ref, Change(to="working"))
        assert await world.store.load_many([ref]) == [None]
        return refused.value.reason

    @pytest.mark.parametrize("field", [name for name in FIXED if name not in ("scope", "task_id")])
    async def test_a_record_in_which_a_fixed_field_was_changed_is_not_read(
        self, sealed: RedisWorld, field: str
    ) -> None:
        record = await created(sealed)
        key = sealed.keys.record(record.scope, record.task_id)
        value = {"type": "prompt", "work": "[1, 0, false]", "format": "1", "options": "{}"}.get(field, "1234")
        sealed.client.hset(key, field, value)
        assert "its fixed fields were changed" in await self.refused(sealed, record.ref)

    async def test_a_record_without_a_signature_is_not_read(self, sealed: RedisWorld) -> None:
        record = await created(sealed)
        sealed.client.hdel(sealed.keys.record(record.scope, record.task_id), "signature")
        assert "it is not signed" in await self.refused(sealed, record.ref)

    @pytest.mark.parametrize("with_names", [False, True])
    async def test_a_copied_record_is_not_read(self, sealed: RedisWorld, with_names: bool) -> None:
        """Who may read a task of its own and write to the store would else read the tasks of others."""
        record, other = await created(sealed), a_record(scope="mallory")
        place = sealed.keys.record(other.scope, other.task_id)
        sealed.client.copy(sealed.keys.record(record.scope, record.task_id), place)
        if with_names:
            sealed.client.hset(place, mapping={"scope": "mallory", "task_id": other.task_id, "key": other.key})
            assert "its fixed fields were changed" in await self.refused(sealed, other.ref)
        else:
            with pytest.raises(StoredDataError) as refused:
                await sealed.store.load(other.ref)
            assert "it is another task's" in refused.value.reason

    async def test_a_list_leaves_out_a_forged_record_and_keeps_its_place(
        self, sealed: RedisWorld, caplog: pytest.LogCaptureFixture
    ) -> None:
        forged, record = await created(sealed), await created(sealed)
        sealed.client.hset(sealed.keys.record(forged.scope, forged.task_id), "component", "another")
        page = await sealed.store.page(record.owner, before=None, limit=10)
        assert [stored.record.task_id for stored in page] == [record.task_id]
        assert "left a task out of a list" in caplog.text
        index = sealed.keys.index(record.scope, record.issuer, record.session)
        assert index is not None
        assert sealed.client.zcard(index) == 2

    async def test_the_old_key_of_a_ring_is_good_and_a_removed_one_is_not(
        self, sealed: RedisWorld, store_url: str
    ) -> None:
        record = await created(sealed)
        new = "another " + KEY
        rotated = RedisWorld(store_url, prefix=sealed.prefix, snapshots=snapshots_with([new, KEY]))
        removed = RedisWorld(store_url, prefix=sealed.prefix, snapshots=snapshots_with([new]))
        try:
            stored = await rotated.store.load(record.ref)
            assert stored is not None
            assert stored.record == record
            await self.refused(removed, record.ref)
        finally:
            await rotated.aclose()
            await removed.aclose()

    async def test_an_unsigned_record_is_read_where_that_is_accepted_and_a_forged_one_never(
        self, sealed: RedisWorld, store_url: str
    ) -> None:
        record = await created(sealed)
        key = sealed.keys.record(record.scope, record.task_id)
        world = RedisWorld(store_url, prefix=sealed.prefix, snapshots=snapshots_with([KEY], accept_unsealed=True))
        try:
            sealed.client.hdel(key, "signature")
            stored = await world.store.load(record.ref)
            assert stored is not None
            assert stored.record == record
            sealed.client.hset(key, "signature", "ü")
            await self.refused(world, record.ref)
        finally:
            await world.aclose()

    async def test_without_keys_nothing_is_signed(self, in_redis: RedisWorld) -> None:
        record = replace(a_record(), max_ttl_ms=90_000)
        await in_redis.store.create(record, SNAPSHOT)
        fields: Any = in_redis.client.hkeys(in_redis.keys.record(record.scope, record.task_id))
        assert not {b"signature", b"max_ttl_ms"} & set(fields)


class TestLifetime:
    """A task that somebody brings back from a copy is not run for ever."""

    async def test_a_job_begins_within_the_longest_lifetime_of_its_task_and_not_later(self, sealed: RedisWorld) -> None:
        for late, may_start in ((-1_000, True), (CLOCK_SKEW_MS + 1_000, False)):
            record = replace(a_record(), max_ttl_ms=90_000)
            await sealed.store.create(record, SNAPSHOT)
            at_ms = record.created_at_ms + 90_000 + late
            starting = sealed.store.start(record.ref, Start(attempt=1, retries=0, at_ms=at_ms))
            if may_start:
                assert await starting is not None
            else:
                with pytest.raises(SnapshotUnreadableError) as refused:
                    await starting
                assert refused.value.reason == "its task is older than its longest time to live"

    async def test_no_process_extends_a_task_beyond_its_longest_lifetime(self, sealed: RedisWorld) -> None:
        record = replace(a_record(), max_ttl_ms=90_000)
        await sealed.store.create(record, SNAPSHOT)
        until = record.created_at_ms + 3_600_000
        asking = Asking(attempt=1, at_ms=now_ms(), extension=Extension(until, 3_600_000))
        assert await sealed.store.ask(record.ref, QUESTION, asking)
        stored = await sealed.store.load(record.ref)
        assert stored is not None
        assert stored.record.ttl_ms == 90_000
