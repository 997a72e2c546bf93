"""Which texts of a task are sealed in Redis, each for the one place where it may be opened, and what is signed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mcp_celery.common.jsonable import json_text
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    Answer,
    Change,
    Question,
    TaskRecord,
    TaskRef,
    encode_answer,
    encode_question,
    is_own_reason,
)
from mcp_celery.errors import SnapshotUnreadableError
from mcp_celery.sealing import UNSEALED, Place, Sealing, SnapshotCodec, is_sealed
from mcp_celery.store.codec import (
    Fields,
    Opener,
    Openers,
    decode_error,
    decode_record,
    encode_change,
    encode_record,
    fixed_of,
)
from mcp_celery.store.fields import FIXED
from mcp_celery.store.keys import RedisKeys

CLOCK_SKEW_MS: Final = 300_000
"""How far the clocks of two processes may differ."""
_CREATED_AT: Final = FIXED.index("created_at_ms")
_MAX_TTL: Final = FIXED.index("max_ttl_ms")


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

    def new_record(self, record: TaskRecord) -> Fields:
        """The fields of a new record. With keys they are signed, and say how long it may live at most."""
        fields = encode_record(record)
        if not self.sealing.is_on:
            return fields
        if record.max_ttl_ms is not None:
            fields["max_ttl_ms"] = str(record.max_ttl_ms)
        return {**fields, "signature": self.sealing.sign(self._signed(fields))}

    def record(self, ref: TaskRef, fields: Mapping[str, str]) -> TaskRecord:
        """The record in a hash.

        Args:
            ref: Whose hash it is.
            fields: The hash.

        Raises:
            SealError: There are keys, and its fixed fields are not signed for this place.
            NewerFormatError: A later release wrote it.
            ValueError: It is another task's, or a field cannot be read.
            KeyError: A field is missing.
        """
        record = decode_record(fields, self.openers(ref))
        if record.ref != ref:
            raise ValueError("it is another task's")
        if self.sealing.is_on:
            self.sealing.require_signed(self._signed(fields), fields.get("signature"))
        return record

    def _signed(self, fields: Mapping[str, str]) -> list[str]:
        """The signed fields of a record. They bind it to its place, since scope and id are among them."""
        return [self.keys.prefix, self.keys.namespace, *_named(fixed_of(fields))]

    def request(self, ref: TaskRef, snapshot: TaskContextSnapshot, fixed: Sequence[str]) -> str:
        """A creating request to store.

        Args:
            ref: The new task.
            snapshot: The request.
            fixed: The values of the record's fixed fields.
        """
        return self.snapshots.write(snapshot, self._beside(ref, fixed))

    def open_request(self, ref: TaskRef, stored: bytes, fixed: Sequence[str]) -> TaskContextSnapshot:
        """A stored request.

        Raises:
            SnapshotUnreadableError: It cannot be read, or was not sealed for this task and these values.
        """
        return self.snapshots.read(stored, self._beside(ref, fixed))

    def _beside(self, ref: TaskRef, fixed: Sequence[str]) -> Place:
        """Where alone a request may be read: under its key, and beside a record with these fields."""
        return [self.keys.snapshot(ref.scope, ref.task_id), *_named(fixed)]

    def require_alive(self, fixed: Sequence[str], now_ms: int) -> None:
        """Refuse a task that is older than its longest time to live: its record was put back.

        Args:
            fixed: The values of the record's fixed fields, which are known to be genuine.
            now_ms: The time in ms since the epoch.

        Raises:
            SnapshotUnreadableError: It has.
        """
        longest = fixed[_MAX_TTL]
        if longest and now_ms > int(fixed[_CREATED_AT]) + int(longest) + CLOCK_SKEW_MS:
            raise SnapshotUnreadableError("its task is older than its longest time to live")

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
        """Opens the sealed fields of a task's record.

        A message that is not sealed is taken as it is: scripts write some. So messages are kept secret, but a writer
        to the store can replace them.
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
        """The state that a job keeps for the task's next job, as it is stored.

        Args:
            ref: The task.
            leg: The next job's leg.
            state: What the tool wants back.
        """
        return self.sealing.seal("state", [self._record(ref), leg], json_text(state))

    def open_state(self, ref: TaskRef, leg: int) -> Opener:
        """Opens what the job before kept for the job of a leg."""
        return lambda stored: self.sealing.open("state", [self._record(ref), leg], stored)


def _named(fixed: Sequence[str]) -> list[str]:
    """The fixed fields that a record has, with their values: what an earlier release did not write changes nothing."""
    return [f"{name}={value}" for name, value in zip(FIXED, fixed, strict=True) if value]
