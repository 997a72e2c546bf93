"""Which texts of a task are sealed in Redis, each for the one place where it may be opened."""

from __future__ import annotations

from dataclasses import dataclass

from mcp_celery.engine import Answer, Change, Question, TaskRef, encode_answer, encode_question, is_own_reason
from mcp_celery.jsonable import json_text
from mcp_celery.redis_keys import RedisKeys
from mcp_celery.sealing import UNSEALED, Sealing, SnapshotCodec, is_sealed
from mcp_celery.store.codec import Fields, Opener, Openers, decode_error, encode_change


@dataclass(frozen=True, slots=True)
class TaskSeals:
    """Seals and opens what belongs to tasks.

    Args:
        keys: The names of the keys; that of a task's record is part of each place.
        snapshots: How creating requests are written, and how texts are sealed.
    """

    keys: RedisKeys
    snapshots: SnapshotCodec = UNSEALED

    @property
    def sealing(self) -> Sealing:
        """How texts are sealed."""
        return self.snapshots.sealing

    def _record(self, ref: TaskRef) -> str:
        return self.keys.record(ref.scope, ref.task_id)

    def change(self, ref: TaskRef, change: Change) -> Fields:
        """The fields that a change sets. Message and error are sealed, unless they are this library's own reason.

        A worker with other keys than the server's fails each task, and the server must be able to read why.
        """
        fields = encode_change(change)
        if change.error is not None and is_own_reason(change.error):
            return fields
        if "error" in fields:
            fields["error"] = self.sealing.seal("error", [self._record(ref)], fields["error"])
        if fields.get("status_message"):
            fields["status_message"] = self.sealing.seal("status", [self._record(ref)], fields["status_message"])
        return fields

    def openers(self, ref: TaskRef) -> Openers:
        """What opens the sealed fields of a task's record.

        A message that is not sealed is taken as it is: scripts write some. So messages are kept secret, and whoever can
        write to the store can replace them.
        """

        def open_error(stored: str) -> str:
            if stored.startswith("[") and is_own_reason(decode_error(stored)):
                return stored
            return self.sealing.open("error", [self._record(ref)], stored)

        def open_message(stored: str) -> str:
            return self.sealing.open("status", [self._record(ref)], stored) if is_sealed(stored) else stored

        return Openers(open_error, open_message)

    def question(self, ref: TaskRef, question: Question) -> str:
        """A question to store."""
        return self.sealing.seal("question", [self._record(ref), question.key], encode_question(question))

    def open_question(self, ref: TaskRef, key: str, stored: str) -> str:
        """The text of a stored question."""
        return self.sealing.open("question", [self._record(ref), key], stored)

    def answer(self, ref: TaskRef, key: str, answer: Answer) -> str:
        """An answer to store."""
        return self.sealing.seal("answer", [self._record(ref), key], encode_answer(answer))

    def open_answer(self, ref: TaskRef, key: str, stored: str) -> str:
        """The text of a stored answer."""
        return self.sealing.open("answer", [self._record(ref), key], stored)

    def state(self, ref: TaskRef, leg: int, state: str | None) -> str:
        """What a job keeps for the task's next one, to store.

        Args:
            ref: The task.
            leg: The next job's leg.
            state: What the tool wants back.
        """
        return self.sealing.seal("state", [self._record(ref), leg], json_text(state))

    def open_state(self, ref: TaskRef, leg: int) -> Opener:
        """Opens what the job before kept for the job of a leg."""
        return lambda stored: self.sealing.open("state", [self._record(ref), leg], stored)
