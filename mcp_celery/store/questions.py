"""The questions of tasks in Redis: the commands, and the async store's calls of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from typing_extensions import override

from mcp_celery.engine import (
    Answer,
    Answered,
    Asking,
    Changed,
    NextLeg,
    Question,
    TaskRef,
    decode_answer,
)
from mcp_celery.engine.ports import QuestionStore
from mcp_celery.store.codec import flat_to_mapping
from mcp_celery.store.commands import ResultKey, asked, moved
from mcp_celery.store.keys import RedisKeys
from mcp_celery.store.scripts import Command
from mcp_celery.store.sealed import TaskSeals

Reply = TypeVar("Reply")


def ask(seals: TaskSeals, ref: TaskRef, question: Question, asking: Asking) -> Command[bool]:
    """Ask in the middle of a job."""
    kept = seals.question(ref, question)
    return Command(
        "ask", _asked_in(seals.keys, ref), [*_asking(asking), question.key, kept], _yes, asking.call, use="end"
    )


def park(
    seals: TaskSeals,
    ref: TaskRef,
    questions: Sequence[Question],
    asking: Asking,
    leg: NextLeg,
    result_key: ResultKey | None,
) -> Command[bool]:
    """Ask at the end of a job."""
    kept = [text for question in questions for text in (question.key, seals.question(ref, question))]
    state = seals.state(ref, leg.leg, leg.request_state)
    keys = seals.keys
    place = "" if result_key is None else result_key(leg.job_id)
    return Command(
        "park",
        _asked_in(keys, ref),
        [*_asking(asking), place, state, keys.claims(""), *kept],
        _yes,
        asking.call,
        use="end",
    )


def _asked_in(keys: RedisKeys, ref: TaskRef) -> list[str]:
    """Everything that lives as long as the record, and the index of when that is."""
    return [*moved(keys, ref), *asked(keys, ref), keys.snapshot(ref.scope, ref.task_id), keys.expiry]


def _asking(asking: Asking) -> list[str | int]:
    lifetime = asking.extension
    until, most = ("", 0) if lifetime is None else (lifetime.until_ms, lifetime.max_ttl_ms)
    return [asking.attempt, asking.at_ms, until, most]


def heard(seals: TaskSeals, ref: TaskRef, key: str, *, attempt: int) -> Command[Answer | bool]:
    """The state of an awaited question."""

    def parse(reply: Any) -> Answer | bool:
        return decode_answer(seals.open_answer(ref, key, reply.decode())) if isinstance(reply, bytes) else _yes(reply)

    record = seals.keys.record(ref.scope, ref.task_id)
    return Command("heard", [record, *asked(seals.keys, ref)], [attempt, key], parse)


def withdraw(
    seals: TaskSeals, ref: TaskRef, questions: Sequence[str], *, attempt: int, at_ms: int
) -> Command[dict[str, Answer]]:
    """Forget awaited questions, and their answers."""

    def parse(reply: Any) -> dict[str, Answer]:
        found = zip(questions, cast("list[bytes | None]", reply), strict=False)
        opened = ((key, seals.open_answer(ref, key, text.decode())) for key, text in found if text is not None)
        return {key: decode_answer(text) for key, text in opened}

    keys = seals.keys
    return Command("withdraw", [*moved(keys, ref), *asked(keys, ref)], [attempt, at_ms, *questions], parse)


def answer(
    seals: TaskSeals, ref: TaskRef, answers: Mapping[str, Answer], *, at_ms: int, start_before_ms: int | None
) -> Command[Answered | None]:
    """Take answers."""

    def parse(reply: Any) -> Answered | None:
        if reply is None:
            return None
        taken, due, flat = cast("tuple[int, int, list[bytes]]", reply)
        record = seals.record(ref, flat_to_mapping(flat))
        return Answered(Changed(taken == 1, record), due == 1)

    keys = seals.keys
    given = [text for key, one in answers.items() for text in (key, seals.answer(ref, key, one))]
    too_late = "" if start_before_ms is None else start_before_ms
    return Command("answer", [*moved(keys, ref), *asked(keys, ref), keys.due], [at_ms, too_late, *given], parse)


def published(keys: RedisKeys, ref: TaskRef, *, attempt: int) -> Command[None]:
    """Note that the job that was due is with the broker."""
    names = [keys.record(ref.scope, ref.task_id), keys.due, keys.unclaimed]
    return Command("published", names, [attempt], lambda _: None, use="publication")


def _yes(reply: Any) -> bool:
    return reply == 1


class RedisQuestions(QuestionStore):
    """The part of :class:`mcp_celery.store.RedisTaskStore` that fulfils :class:`mcp_celery.engine.QuestionStore`."""

    keys: RedisKeys
    seals: TaskSeals
    _result_key: ResultKey | None

    @override
    async def ask(self, ref: TaskRef, question: Question, asking: Asking) -> bool:
        return await self.run(ask(self.seals, ref, question, asking))

    @override
    async def heard(self, ref: TaskRef, key: str, *, attempt: int) -> Answer | bool:
        return await self.run(heard(self.seals, ref, key, attempt=attempt))

    @override
    async def withdraw(self, ref: TaskRef, keys: Sequence[str], *, attempt: int, at_ms: int) -> dict[str, Answer]:
        return await self.run(withdraw(self.seals, ref, keys, attempt=attempt, at_ms=at_ms))

    @override
    async def park(self, ref: TaskRef, questions: Sequence[Question], asking: Asking, leg: NextLeg) -> bool:
        return await self.run(park(self.seals, ref, questions, asking, leg, self._result_key))

    @override
    async def answer(
        self, ref: TaskRef, answers: Mapping[str, Answer], *, at_ms: int, start_before_ms: int | None
    ) -> Answered | None:
        return await self.run(answer(self.seals, ref, answers, at_ms=at_ms, start_before_ms=start_before_ms))

    @override
    async def published(self, ref: TaskRef, *, attempt: int) -> None:
        await self.run(published(self.keys, ref, attempt=attempt))

    async def run(self, command: Command[Reply]) -> Reply:
        """Send a command."""
        raise NotImplementedError
