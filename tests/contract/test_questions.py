"""What every store does with questions and answers, told once for memory and Redis."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcp_celery.engine import (
    ELICIT,
    Answer,
    Answered,
    Asking,
    Change,
    Claim,
    Extension,
    JobOutcome,
    JSONObject,
    NextLeg,
    Question,
    RpcError,
    Start,
    TaskRecord,
    TaskStatus,
    leg_key,
    success,
)
from mcp_celery.errors import JobFailedError
from mcp_celery.keys import celery_job_id
from tests.support.worlds import SNAPSHOT, RedisWorld, World, a_record

pytestmark = pytest.mark.anyio

CLAIM = Claim("celery@host", 1_790_000_000_000)


def a_question(key: str) -> Question:
    return Question(key, ELICIT, {"mode": "form", "message": f"What about {key}?", "requestedSchema": {}})


def an_answer(value: object = "yes") -> JSONObject:
    return {"action": "accept", "content": {"value": value}}


@dataclass
class Asked:
    """A task whose job asks."""

    world: World
    record: TaskRecord
    attempt: int = 1

    def asking(self, at_ms: int = 5, extension: Extension | None = None) -> Asking:
        return Asking(attempt=self.attempt, at_ms=at_ms, extension=extension)

    async def ask(self, *keys: str, extension: Extension | None = None) -> bool:
        asked = [
            await self.world.store.ask(self.record.ref, a_question(key), self.asking(extension=extension))
            for key in keys
        ]
        return all(asked)

    async def park(self, *names: str, state: str | None = None, extension: Extension | None = None) -> bool:
        leg = (await self.now()).leg
        questions = [a_question(leg_key(leg, name)) for name in names]
        following = NextLeg(leg=leg + 1, job_id=celery_job_id(self.record.key, leg + 1), request_state=state)
        return await self.world.store.park(self.record.ref, questions, self.asking(extension=extension), following)

    async def answer(self, answers: Mapping[str, Answer], start_before_ms: int | None = None) -> Answered:
        answered = await self.world.store.answer(self.record.ref, answers, at_ms=9, start_before_ms=start_before_ms)
        assert answered is not None
        return answered

    async def heard(self, key: str) -> Answer | bool:
        return await self.world.store.heard(self.record.ref, key, attempt=self.attempt)

    async def withdraw(self, *keys: str) -> Mapping[str, Answer]:
        return await self.world.store.withdraw(self.record.ref, keys, attempt=self.attempt, at_ms=9)

    async def start(self, attempt: int, retries: int = 0) -> Any:
        return await self.world.store.start(self.record.ref, Start(attempt=attempt, retries=retries, at_ms=7))

    async def open(self) -> list[str]:
        """The keys of the open questions, in the order told."""
        stored = await self.world.store.load(self.record.ref)
        assert stored is not None
        return [question.key for question in stored.questions]

    async def now(self) -> TaskRecord:
        stored = await self.world.store.load(self.record.ref)
        assert stored is not None
        return stored.record

    async def status(self) -> TaskStatus:
        return (await self.now()).status


@pytest.fixture
async def task(world: World) -> Asked:
    record = a_record()
    await world.store.create(record, SNAPSHOT)
    assert await world.store.start(record.ref, Start(attempt=1, retries=0, at_ms=2))
    return Asked(world, record)


class TestAwaited:
    async def test_a_question_makes_the_task_wait_for_input(self, task: Asked) -> None:
        asking = task.asking(at_ms=task.record.created_at_ms + 5)
        assert await task.world.store.ask(task.record.ref, a_question("one"), asking)
        stored = await task.world.store.load(task.record.ref)
        assert stored is not None
        assert stored.record == replace(
            task.record, status="input_required", updated_at_ms=asking.at_ms, revision=2, started_at_ms=2
        )
        assert list(stored.questions) == [a_question("one")]
        assert task.world.told(task.record.ref) == 1

    async def test_each_change_is_later_than_the_one_before_whatever_the_clocks_say(self, task: Asked) -> None:
        """By the times that clients are told they put a task's states in order."""
        ref, store = task.record.ref, task.world.store

        async def change(at_ms: int) -> None:
            assert await store.change(ref, Change(to="working", at_ms=at_ms))

        async def begin_again() -> None:
            assert await task.start(attempt=1, retries=1)

        steps: list[Callable[[], Awaitable[object]]] = [
            lambda: task.ask("one"),
            lambda: change(task.record.created_at_ms - 60_000),
            lambda: task.ask("two", "three"),
            lambda: task.answer({"one": an_answer()}),
            lambda: change(task.record.created_at_ms + 60_000),
            lambda: task.withdraw("two"),
            begin_again,
            lambda: task.park("four"),
            lambda: store.change(ref, Change(to="cancelled", at_ms=5)),
        ]
        found = [await task.now()]
        for step in steps:
            await step()
            found.append(await task.now())
        for before, after in itertools.pairwise(found):
            assert after.revision > before.revision
            assert after.updated_at_ms > before.updated_at_ms

    async def test_questions_are_listed_in_the_order_of_asking(self, task: Asked) -> None:
        keys = [f"{'zyxwv'[n % 5]}{n}" for n in range(12)]
        assert await task.ask(*keys)
        assert await task.open() == keys

    async def test_a_repeated_question_is_one_question(self, task: Asked) -> None:
        assert await task.ask("one", "one")
        assert await task.open() == ["one"]
        assert task.world.told(task.record.ref) == 1
        await task.answer({"one": an_answer()})
        assert await task.ask("one")
        assert await task.open() == []

    async def test_the_last_answer_lets_the_task_work_again(self, task: Asked) -> None:
        await task.ask("one", "two")
        asked = await task.now()
        partial = await task.answer({"one": an_answer(1)})
        assert (partial.changed.accepted, partial.is_due) == (True, False)
        assert partial.changed.record.status == "input_required"
        assert partial.changed.record.updated_at_ms > asked.updated_at_ms
        assert await task.open() == ["two"]
        assert await task.heard("one") == an_answer(1)
        assert await task.heard("two") is True
        last = await task.answer({"two": an_answer(2)})
        assert (last.changed.record.status, last.is_due) == ("working", False)
        assert not task.world.is_due(task.record.ref)
        assert await task.heard("two") == an_answer(2)
        assert task.world.told(task.record.ref) == 4

    async def test_an_answer_without_an_open_question_changes_nothing(self, task: Asked) -> None:
        await task.ask("one", "two")
        await task.answer({"one": an_answer("first")})
        before = await task.now()
        ignored = await task.answer({"one": an_answer("second"), "three": an_answer()})
        assert not ignored.changed.accepted
        assert await task.now() == before
        assert await task.heard("one") == an_answer("first")
        assert await task.heard("three") is False
        assert task.world.told(task.record.ref) == 3

    async def test_an_answer_may_be_an_error(self, task: Asked) -> None:
        await task.ask("one")
        refusal = RpcError(-32601, "Not here", {"why": 1})
        await task.answer({"one": refusal})
        assert await task.heard("one") == refusal

    async def test_a_withdrawn_question_cannot_be_answered(self, task: Asked) -> None:
        await task.ask("one", "two")
        await task.withdraw("one")
        assert await task.open() == ["two"]
        assert await task.status() == "input_required"
        assert not (await task.answer({"one": an_answer()})).changed.accepted
        await task.withdraw("two")
        assert await task.status() == "working"
        assert task.world.told(task.record.ref) == 4

    async def test_withdrawing_an_answered_question_deletes_its_answer_without_a_hint(self, task: Asked) -> None:
        await task.ask("one")
        await task.answer({"one": an_answer()})
        assert await task.withdraw("none", "one") == {"one": an_answer()}
        assert await task.withdraw("one") == {}
        assert await task.heard("one") is False
        assert task.world.told(task.record.ref) == 2

    async def test_progress_does_not_hide_that_input_is_required(self, task: Asked) -> None:
        await task.ask("one")
        changed = await task.world.store.change(task.record.ref, Change(to="working", attempt=1, status_message="half"))
        assert changed is not None
        assert (changed.accepted, changed.record.status) == (True, "input_required")
        assert changed.record.status_message == "half"

    @pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
    async def test_the_end_takes_the_questions_away(self, task: Asked, status: TaskStatus) -> None:
        await task.ask("one", "two")
        await task.answer({"one": an_answer()})
        await task.world.store.change(task.record.ref, Change(to=status))
        assert await task.open() == []
        assert await task.heard("one") is False
        assert await task.heard("two") is False
        assert not (await task.answer({"two": an_answer()})).changed.accepted
        assert await task.status() == status
        assert not await task.ask("three")

    async def test_only_the_current_attempt_may_ask_and_read_answers(self, task: Asked) -> None:
        await task.ask("one")
        await task.answer({"one": an_answer()})
        task.attempt = 2
        assert not await task.ask("two")
        assert not await task.park("two")
        assert await task.heard("one") is False
        assert await task.status() == "working"

    async def test_a_redelivered_job_finds_no_question_of_the_run_before(self, task: Asked) -> None:
        await task.ask("one")
        assert await task.start(1, retries=1)
        assert await task.open() == []
        assert await task.status() == "working"
        assert await task.heard("one") is False
        await task.ask("two")
        assert await task.open() == ["two"]

    async def test_a_refused_delivery_leaves_the_questions_alone(self, task: Asked) -> None:
        await task.ask("one")
        assert await task.start(1, retries=0) is None
        assert await task.open() == ["one"]


class TestReturned:
    async def test_the_next_leg_becomes_the_current_one(self, task: Asked) -> None:
        retry = Change(to="working", retries=1, retry_at_ms=2)
        assert await task.world.store.change(task.record.ref, retry)
        assert task.world.ledger.claim(task.record.ref, attempt=1, claim=CLAIM, retries=1)
        assert await task.park("name", "age", state="page 2")
        parked = await task.now()
        assert await task.open() == ["1.name", "1.age"]
        assert (parked.status, parked.leg, parked.attempt) == ("input_required", 2, 2)
        assert parked.job_id == f"{task.record.job_id}!2"
        assert (parked.claim, parked.started_at_ms, parked.start_before_ms) == (None, None, None)
        assert (parked.retries, parked.retry_at_ms) == (task.record.retries, None)

    async def test_the_first_jobs_expiry_does_not_apply_to_the_next_leg(self, world: World) -> None:
        record = replace(a_record(), start_before_ms=1)
        await world.store.create(record, SNAPSHOT)
        task = Asked(world, record)
        await task.park("name")
        assert (await task.now()).start_before_ms is None

    async def test_the_next_leg_is_due_with_the_last_answer_and_gets_all_answers(self, task: Asked) -> None:
        await task.park("name", "age", state="page 2")
        assert not (await task.answer({"1.name": an_answer("Ada")})).is_due
        assert await task.start(2) is None
        last = await task.answer({"1.age": an_answer(36)}, start_before_ms=1_000)
        assert last.is_due
        assert last.changed.record.status == "working"
        assert task.world.is_due(task.record.ref)
        assert last.changed.record.start_before_ms == 1_000
        snapshot = await task.start(2)
        assert snapshot.params == {
            **SNAPSHOT.params,
            "inputResponses": {"name": an_answer("Ada"), "age": an_answer(36)},
            "requestState": "page 2",
        }

    async def test_a_next_leg_begins_only_once(self, task: Asked) -> None:
        await task.park("name")
        await task.answer({"1.name": an_answer()})
        assert await task.start(2)
        assert await task.start(2) is None

    async def test_messages_of_the_job_that_ended_are_refused(self, task: Asked) -> None:
        await task.park("name")
        parked = await task.now()
        told = task.world.told(task.record.ref)
        outcome = replace(success(JobOutcome({"content": []})), attempt=1)
        for change in (outcome, Change(to="failed", attempt=1), Change(to="working", attempt=1, status_message="late")):
            refused = await asyncio.to_thread(task.world.ledger.change, task.record.ref, change)
            assert refused is not None
            assert not refused.accepted
        assert not task.world.ledger.claim(task.record.ref, attempt=1, claim=CLAIM, retries=5)
        assert await task.start(1, retries=1) is None
        await task.withdraw("1.name")
        assert await task.now() == parked
        assert task.world.told(task.record.ref) == told

    async def test_a_result_of_the_leg_before_is_never_read(self, task: Asked) -> None:
        await task.park("name")
        task.world.put_result(task.record.job_id, "SUCCESS", JobOutcome({"content": []}))
        stored = await task.world.store.load(task.record.ref)
        assert stored is not None
        assert stored.result is None

    async def test_a_name_may_be_used_again_by_a_later_leg(self, task: Asked) -> None:
        await task.park("sure", state="one")
        await task.answer({"1.sure": an_answer("first")})
        await task.start(2)
        task.attempt = 2
        await task.park("sure")
        assert await task.open() == ["2.sure"]
        assert not (await task.answer({"1.sure": an_answer("late")})).changed.accepted
        await task.answer({"2.sure": an_answer("second")})
        assert (await task.start(3)).params == {**SNAPSHOT.params, "inputResponses": {"sure": an_answer("second")}}

    async def test_a_question_that_the_body_left_open_does_not_belong_to_the_next_leg(self, task: Asked) -> None:
        await task.ask("awaited", "answered")
        await task.answer({"answered": an_answer()})
        await task.park("returned")
        assert await task.open() == ["1.returned"]
        task.attempt = 2
        assert [await task.heard(key) for key in ("awaited", "answered")] == [False, False]

    async def test_awaited_answers_are_not_given_to_a_later_leg(self, task: Asked) -> None:
        await task.park("returned")
        await task.answer({"1.returned": an_answer()})
        await task.start(2)
        task.attempt = 2
        await task.ask("awaited")
        assert not (await task.answer({"awaited": an_answer("only now")})).is_due
        snapshot = await task.start(2, retries=1)
        assert snapshot.params["inputResponses"] == {"returned": an_answer()}

    async def test_an_error_for_an_answer_ends_the_next_leg(self, task: Asked) -> None:
        await task.park("name")
        await task.answer({"1.name": RpcError(-32601, "Not here")})
        with pytest.raises(JobFailedError) as failed:
            await task.start(2)
        assert (failed.value.error_code, failed.value.message) == (-32601, "Not here")

    async def test_an_answer_does_not_resume_a_cancelled_task(self, task: Asked) -> None:
        await task.park("name")
        await task.world.store.change(task.record.ref, Change(to="cancelled"))
        late = await task.answer({"1.name": an_answer()})
        assert (late.changed.accepted, late.is_due) == (False, False)
        assert await task.start(2) is None
        assert await task.status() == "cancelled"

    async def test_publishing_is_noted_for_the_leg_that_was_published(self, task: Asked) -> None:
        await task.park("name")
        due = (await task.answer({"1.name": an_answer()})).changed.record
        await task.world.store.published(task.record.ref, attempt=due.attempt - 1)
        assert task.world.is_due(task.record.ref)
        await task.world.store.published(task.record.ref, attempt=due.attempt)
        assert not task.world.is_due(task.record.ref)

    async def test_an_unknown_task_is_asked_and_answered_nothing(self, world: World) -> None:
        nobody = Asked(world, a_record())
        assert not await nobody.ask("one")
        assert await nobody.heard("one") is False
        assert await nobody.withdraw("one") == {}
        assert await world.store.answer(nobody.record.ref, {"one": an_answer()}, at_ms=1, start_before_ms=None) is None
        await world.store.published(nobody.record.ref, attempt=1)


def _indices(world: RedisWorld) -> tuple[str, ...]:
    """The keys of all tasks in which a new one is."""
    return (world.keys.expiry, world.keys.remembered, world.keys.unclaimed)


class TestLifetime:
    @pytest.mark.parametrize("ask", [Asked.ask, Asked.park])
    async def test_a_wait_may_extend_the_ttl_up_to_the_limit(
        self, task: Asked, ask: Callable[..., Awaitable[bool]]
    ) -> None:
        created, ttl = task.record.created_at_ms, task.record.ttl_ms
        assert await ask(task, "one", extension=Extension(created + 3 * ttl, max_ttl_ms=2 * ttl))
        assert (await task.now()).ttl_ms == 2 * ttl

    async def test_a_wait_never_shortens_the_ttl(self, task: Asked) -> None:
        await task.ask("one", extension=Extension(task.record.created_at_ms + 1, max_ttl_ms=10))
        await task.ask("two")
        assert (await task.now()).ttl_ms == task.record.ttl_ms

    async def test_all_keys_of_the_task_expire_with_it(self, in_redis: RedisWorld) -> None:
        record = a_record(component="c" * 200)
        await in_redis.store.create(record, SNAPSHOT)
        task = Asked(in_redis, record)
        until = record.created_at_ms + 500_000
        await task.ask("one", "two", extension=Extension(until, max_ttl_ms=3_600_000))
        await task.answer({"one": an_answer()})
        client = cast("Any", in_redis.client)
        ends = {key.decode(): client.pexpiretime(key) for key in in_redis.keys_left()}
        assert all(ends.pop(index) > until for index in _indices(in_redis))
        assert client.zscore(in_redis.keys.expiry, record.key) == until
        assert len(ends) == 6, ends
        assert ends[in_redis.keys.record(record.scope, record.task_id)] == until
        # What is given its life as a rest of the record's may end a moment before or after it.
        assert all(abs(end - until) < 50 for end in ends.values()), ends

    async def test_the_end_leaves_neither_questions_nor_answers_nor_the_request(self, in_redis: RedisWorld) -> None:
        record = a_record()
        await in_redis.store.create(record, SNAPSHOT)
        task = Asked(in_redis, record)
        await task.ask("one", "two")
        await task.answer({"one": an_answer("private")})
        await in_redis.store.change(record.ref, Change(to="cancelled"))
        name = in_redis.keys.record(record.scope, record.task_id)
        index = str(in_redis.keys.index(record.scope, record.issuer, None))
        assert set(in_redis.keys_left()) == {
            one.encode() for one in (name, in_redis.keys.expiry, in_redis.keys.remembered, index)
        }


# --- However it comes


@dataclass
class Model:
    """What must hold of one task, whatever is asked, answered and withdrawn."""

    open: list[str] = field(default_factory=list[str])
    answered: dict[str, object] = field(default_factory=dict[str, object])
    used: set[str] = field(default_factory=set[str])

    def ask(self, key: str) -> None:
        if key not in self.used:
            self.open.append(key)
            self.used.add(key)

    def answer(self, answers: Mapping[str, object]) -> None:
        for key, value in answers.items():
            if key in self.open:
                self.open.remove(key)
                self.answered[key] = value

    def withdraw(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.answered.pop(key, None)
            if key in self.open:
                self.open.remove(key)


KEYS = ("a", "b", "c", "d")
some_keys = st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True)
some_answers = st.dictionaries(st.sampled_from((*KEYS, "unknown")), st.integers(0, 9), min_size=1, max_size=4)
steps = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(KEYS)),
    st.tuples(st.just("answer"), some_answers),
    st.tuples(st.just("withdraw"), some_keys),
    st.tuples(st.just("progress"), st.none()),
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(steps, max_size=20))
async def test_questions_status_and_due_leg_agree_after_every_step(world: World, taken: list[tuple[str, Any]]) -> None:
    record = a_record()
    await world.store.create(record, SNAPSHOT)
    task, model = Asked(world, record), Model()
    names: dict[str, str] = {}  # a key is never used twice in a task's life: asked again, it is another

    def current(key: str) -> str:
        return names.get(key, key)

    for number, (step, what) in enumerate(taken):
        if step == "ask":
            if current(what) not in model.open:
                names[what] = f"{what}{number}"
            assert await task.ask(names[what])
            model.ask(names[what])
        elif step == "answer":
            given: dict[str, Answer] = {current(key): an_answer(value) for key, value in what.items()}
            accepted = (await task.answer(given)).changed.accepted
            assert accepted == any(key in model.open for key in given)
            model.answer(given)
        elif step == "withdraw":
            keys = [current(key) for key in what]
            await task.withdraw(*keys)
            model.withdraw(keys)
        else:
            await world.store.change(record.ref, Change(to="working", attempt=1, status_message=str(number)))
        assert await task.open() == model.open
        assert await task.status() == ("input_required" if model.open else "working")
        for key in model.used:
            expected: object = model.answered.get(key, key in model.open)
            assert await task.heard(key) == expected


@pytest.mark.shows("M15")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sets(st.sampled_from(KEYS), min_size=1), st.lists(some_answers, min_size=1, max_size=6))
async def test_however_updates_race_each_question_gets_one_answer_and_one_leg_is_due(
    world: World, names: set[str], updates: list[dict[str, int]]
) -> None:
    record = a_record()
    await world.store.create(record, SNAPSHOT)
    task = Asked(world, record)
    await task.park(*names)
    told = world.told(record.ref)
    racing = [
        {leg_key(1, key): an_answer([number, value]) for key, value in update.items()}
        for number, update in enumerate([*updates, dict.fromkeys(names, 0)])
    ]
    answered = await asyncio.gather(*(task.answer(update) for update in racing))

    assert sum(one.is_due for one in answered) == 1
    assert world.told(record.ref) - told == sum(one.changed.accepted for one in answered)
    snapshot = await task.start(2)
    responses = snapshot.params["inputResponses"]
    assert responses.keys() == names
    for name, answer in responses.items():
        number, _value = answer["content"]["value"]
        assert answer == racing[number][leg_key(1, name)]
        assert answered[number].changed.accepted
