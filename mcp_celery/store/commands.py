"""Every storage command as data: which script, which keys, which arguments, and how its reply reads.

The async store and the blocking ledger differ only in how they send a :class:`Command`, so each command is said once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final, Generic, TypeVar, cast

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import Change, Changed, Claim, StoredResult, StoredTask, TaskRef, sources_of
from mcp_celery.keys import RedisKeys
from mcp_celery.store.codec import decode_record, encode_change, flat_to_mapping

Reply = TypeVar("Reply")
Decode = Callable[[bytes], StoredResult | None]
"""Reads what Celery's result backend stored."""


def _script(name: str) -> str:
    return resources.files("mcp_celery.store").joinpath(f"{name}.lua").read_text()


SCRIPTS: Final = {name: _script(name) for name in ("load", "transition", "start", "claim")}


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
    args: Sequence[str | int]
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


def change(keys: RedisKeys, ref: TaskRef, change: Change) -> Command[Changed | None]:
    """Move a task, if the status table and the attempt allow it."""

    def parse(reply: Any) -> Changed | None:
        if reply is None:
            return None
        moved, flat = cast("tuple[int, list[bytes]]", reply)
        return Changed(moved == 1, decode_record(flat_to_mapping(flat)))

    sources = f",{','.join(sorted(sources_of(change.to)))},"
    attempt = "" if change.attempt is None else change.attempt
    fields = [text for pair in encode_change(change).items() for text in pair]
    return Command(
        "transition",
        [keys.record(ref.scope, ref.task_id), keys.channel(ref.scope, ref.task_id)],
        [sources, attempt, int(change.if_unstarted), "", *fields],
        parse,
    )


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
