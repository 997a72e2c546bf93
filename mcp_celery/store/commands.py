"""Every storage command as data: which script, which keys, which arguments, and how its reply reads.

The async store and the blocking ledger differ only in how they send a :class:`Command`, so each command is said once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, Generic, TypeVar, cast

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    Change,
    Changed,
    Claim,
    EncodedResult,
    StoredResult,
    StoredTask,
    TaskRecord,
    TaskRef,
    sources_of,
)
from mcp_celery.keys import RedisKeys, is_shortened
from mcp_celery.store.codec import decode_record, encode_change, encode_record, flat_to_mapping

Reply = TypeVar("Reply")
ResultKey = Callable[[str], str]
"""Where Celery's result backend keeps a job's result in this same Redis."""
Decode = Callable[[bytes], StoredResult | None]
"""Reads what Celery's result backend stored."""


def _script(name: str) -> str:
    return resources.files("mcp_celery.store").joinpath(f"{name}.lua").read_text()


SCRIPTS: Final = {name: _script(name) for name in ("create", "load", "transition", "finish", "start", "claim")}


@dataclass(frozen=True, slots=True)
class Command(Generic[Reply]):
    """One call of a Lua script.

    Attributes:
        script: Its name in :data:`SCRIPTS`.
        keys: KEYS.
        args: ARGV.
        parse: Reads the reply.
    """

    script: str
    keys: Sequence[str]
    args: Sequence[str | bytes | int]
    parse: Callable[[Any], Reply]


def load(keys: RedisKeys, ref: TaskRef, decode: Decode | None) -> Command[StoredTask | None]:
    """Read a record, with the job's stored result where ``decode`` can read it."""

    def parse(reply: Any) -> StoredTask | None:
        if reply is None:
            return None
        flat, stored = cast("tuple[list[bytes], bytes | None]", reply)
        result = None if stored is None or decode is None else decode(stored)
        return StoredTask(decode_record(flat_to_mapping(flat)), result)

    return Command("load", [keys.record(ref.scope, ref.task_id)], [], parse)


def create(
    keys: RedisKeys, record: TaskRecord, snapshot: TaskContextSnapshot, result_key: ResultKey | None
) -> Command[None]:
    """Keep a new record, its snapshot and, for a shortened Celery id, the way back to its key."""
    fields = encode_record(record)
    job_id = record.job_id
    if result_key is not None:
        fields["result_key"] = result_key(job_id)
    names = [keys.record(record.scope, record.task_id), keys.snapshot(record.scope, record.task_id)]
    if is_shortened(job_id):
        names.append(keys.job_alias(job_id))
    flat = [text for pair in fields.items() for text in pair]
    return Command("create", names, [record.expires_at_ms, snapshot.to_json(), record.key, *flat], lambda _: None)


def finish(keys: RedisKeys, ref: TaskRef, change: Change, result: EncodedResult) -> Command[bool]:
    """Store a job's result and move its task. False: the move was refused, or the task is gone."""
    lifetime = "" if result.expires_seconds is None else result.expires_seconds
    return Command(
        "finish",
        [*_moved(keys, ref), result.key],
        [*_allowed(change), result.payload, lifetime, *_fields(change)],
        lambda reply: reply == 1,
    )


def change(keys: RedisKeys, ref: TaskRef, change: Change) -> Command[Changed | None]:
    """Move a task, if the status table and the attempt allow it."""

    def parse(reply: Any) -> Changed | None:
        if reply is None:
            return None
        moved, flat = cast("tuple[int, list[bytes]]", reply)
        return Changed(moved == 1, decode_record(flat_to_mapping(flat)))

    return Command(
        "transition",
        _moved(keys, ref),
        [*_allowed(change), int(change.if_unstarted), "", *_fields(change)],
        parse,
    )


def _moved(keys: RedisKeys, ref: TaskRef) -> list[str]:
    """The keys of a move: the record and its channel."""
    return [keys.record(ref.scope, ref.task_id), keys.channel(ref.scope, ref.task_id)]


def _allowed(change: Change) -> tuple[str, str | int]:
    """The statuses and the attempt from which a move is allowed."""
    return f",{','.join(sorted(sources_of(change.to)))},", "" if change.attempt is None else change.attempt


def _fields(change: Change) -> list[str]:
    return [text for pair in encode_change(change).items() for text in pair]


def start(
    keys: RedisKeys, ref: TaskRef, *, attempt: int, retries: int, at_ms: int, delivery: str
) -> Command[TaskContextSnapshot | None]:
    """Let a body begin. A snapshot that is gone while its record lives fails the start."""

    def parse(reply: Any) -> TaskContextSnapshot | None:
        return None if reply is None else TaskContextSnapshot.from_json(cast(bytes, reply).decode())

    return Command(
        "start",
        [keys.record(ref.scope, ref.task_id), keys.snapshot(ref.scope, ref.task_id)],
        [attempt, retries, at_ms, delivery],
        parse,
    )


def claim(keys: RedisKeys, ref: TaskRef, *, attempt: int, retries: int, claim: Claim) -> Command[bool]:
    """Note which worker received a job."""
    return Command(
        "claim",
        [keys.record(ref.scope, ref.task_id)],
        [attempt, retries, claim.worker, int(claim.can_terminate), claim.at_ms],
        lambda reply: cast(int, reply) == 1,
    )
