"""Questions of tasks and answers to them, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from typing_extensions import override

from mcp_celery.engine import (
    Answer,
    Answered,
    Asking,
    Cause,
    Changed,
    NextLeg,
    Observers,
    Question,
    TaskRef,
    TaskStatus,
    Transition,
    decode_answer,
    encode_answer,
)
from mcp_celery.engine.ports import QuestionStore
from mcp_celery.testing.bus import MemoryTaskBus
from mcp_celery.testing.kept import Kept, KeptTasks
from mcp_celery.testing.places import Places


class MemoryQuestions:
    """The questions of the records' core; each call is one step."""

    _bus: MemoryTaskBus
    _observers: Observers
    _clock: Callable[[], int]
    _kept: KeptTasks
    _places: Places

    def _found(self, ref: TaskRef) -> AbstractContextManager[Kept | None]:
        raise NotImplementedError

    def _take_turn(self, kept: Kept) -> int | None:
        raise NotImplementedError

    def ask(self, ref: TaskRef, question: Question, asking: Asking) -> bool:
        """As ``QuestionStore.ask``."""
        with self._found(ref) as kept:
            if kept is None or not kept.counts(asking.attempt):
                return False
            if question.key not in kept.questions and question.key not in kept.answers:
                kept.questions[question.key] = question
                self._move(kept, asking, "asked")
            return True

    def park(self, ref: TaskRef, questions: Sequence[Question], asking: Asking, leg: NextLeg) -> bool:
        """As ``QuestionStore.park``."""
        with self._found(ref) as kept:
            if kept is not None and asking.call in kept.calls:
                return True
            if kept is None or not kept.counts(asking.attempt):
                return False
            kept.note_answer(asking.call)
            kept.questions = {question.key: question for question in questions}
            kept.answers = {}
            kept.request_state, kept.is_parked = leg.request_state, True
            kept.reset_attempt()
            self._kept.let_go(kept)
            kept.claim_retries = 0
            record = kept.record
            kept.record = replace(
                record,
                leg=record.leg + 1,
                attempt=record.attempt + 1,
                claim=None,
                retries=0,
                retry_at_ms=None,
                started_at_ms=None,
                start_before_ms=None,
            )
            self._move(kept, asking, "parked")
            self._places.release(kept)  # it has no job while it waits
            return True

    def _move(self, kept: Kept, asking: Asking, cause: Cause) -> None:
        if asking.extension is not None:
            kept.extend(asking.extension)
        before = kept.record.status
        kept.record = replace(kept.record, status="input_required")
        self._tell(kept, asking.at_ms, cause, before)

    def _tell(self, kept: Kept, at_ms: int, cause: Cause, before: TaskStatus) -> None:
        kept.count_change(at_ms)
        self._bus.tell(kept.record.ref)
        self._report(kept, cause, before, at_ms)

    def _report(self, kept: Kept, cause: Cause, before: TaskStatus, at_ms: int) -> None:
        self._observers.notify(Transition.of_record(kept.record, cause, before=before, at_ms=at_ms))

    def heard(self, ref: TaskRef, key: str, *, attempt: int) -> Answer | bool:
        """As ``QuestionStore.heard``."""
        with self._found(ref) as kept:
            if kept is None or kept.record.attempt != attempt:
                return False
            return decode_answer(kept.answers[key]) if key in kept.answers else key in kept.questions

    def withdraw(self, ref: TaskRef, keys: Sequence[str], *, attempt: int, at_ms: int) -> dict[str, Answer]:
        """As ``QuestionStore.withdraw``."""
        with self._found(ref) as kept:
            if kept is None or kept.record.attempt != attempt:
                return {}
            answers = {key: decode_answer(kept.answers.pop(key)) for key in keys if key in kept.answers}
            withdrawn = [key for key in keys if kept.questions.pop(key, None) is not None]
            before = kept.record.status
            if withdrawn and not kept.questions:
                kept.record = replace(kept.record, status="working")
            if withdrawn:
                self._tell(kept, at_ms, "withdrawn", before)
            return answers

    def answer(
        self, ref: TaskRef, answers: Mapping[str, Answer], *, at_ms: int, start_before_ms: int | None
    ) -> Answered | None:
        """As ``QuestionStore.answer``."""
        with self._found(ref) as kept:
            if kept is None:
                return None
            taken = [key for key in answers if kept.questions.pop(key, None) is not None]
            kept.answers.update({key: encode_answer(answers[key]) for key in taken})
            before = kept.record.status
            goes_on = bool(taken) and not kept.questions and kept.is_parked
            if taken and not kept.questions:
                kept.record = replace(kept.record, status="working")
            is_due = goes_on and self._take_turn(kept) is None
            if goes_on:
                kept.is_parked = False
                kept.record = replace(kept.record, start_before_ms=start_before_ms)
            if is_due:
                self._kept.due[ref] = self._clock()
            if taken:
                self._tell(kept, at_ms, "answered", before)
            return Answered(Changed(bool(taken), kept.record), is_due)

    def published(self, ref: TaskRef, *, attempt: int) -> None:
        """As ``QuestionStore.published``."""
        with self._found(ref) as kept:
            if kept is not None:
                self._kept.note_published(kept)
            if kept is not None and kept.record.attempt == attempt:
                self._kept.due.pop(ref, None)
                if kept.awaits_claim and not kept.record.work.is_foreign:
                    self._kept.unclaimed[ref] = max(self._clock(), kept.record.retry_at_ms or 0)


class MemoryQuestionStore(QuestionStore):
    """The same for event loops. Fulfils :class:`mcp_celery.engine.QuestionStore`."""

    def __init__(self, core: MemoryQuestions) -> None:
        self._core = core

    @override
    async def ask(self, ref: TaskRef, question: Question, asking: Asking) -> bool:
        return self._core.ask(ref, question, asking)

    @override
    async def heard(self, ref: TaskRef, key: str, *, attempt: int) -> Answer | bool:
        return self._core.heard(ref, key, attempt=attempt)

    @override
    async def withdraw(self, ref: TaskRef, keys: Sequence[str], *, attempt: int, at_ms: int) -> dict[str, Answer]:
        return self._core.withdraw(ref, keys, attempt=attempt, at_ms=at_ms)

    @override
    async def park(self, ref: TaskRef, questions: Sequence[Question], asking: Asking, leg: NextLeg) -> bool:
        return self._core.park(ref, questions, asking, leg)

    @override
    async def answer(
        self, ref: TaskRef, answers: Mapping[str, Answer], *, at_ms: int, start_before_ms: int | None
    ) -> Answered | None:
        return self._core.answer(ref, answers, at_ms=at_ms, start_before_ms=start_before_ms)

    @override
    async def published(self, ref: TaskRef, *, attempt: int) -> None:
        self._core.published(ref, attempt=attempt)
