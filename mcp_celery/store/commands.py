"""Every storage command as data: which script, which keys, which arguments, and how its reply reads.

The async store and the blocking ledger differ only in how they send a :class:`Command`, so each command is said once.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, cast, get_args

from mcp_celery.common.formats import NewerFormatError
from mcp_celery.engine import (
    TERMINAL,
    Caller,
    Change,
    Changed,
    Claim,
    EarlierTask,
    EncodedResult,
    Extension,
    FailedLookups,
    HandBack,
    HandedBack,
    Idempotency,
    JSONObject,
    OtherVersionError,
    Publication,
    QueueMessage,
    Quota,
    Start,
    StoredResult,
    StoredTask,
    TaskRecord,
    TaskRef,
    cause_of,
    sources_of,
)
from mcp_celery.engine.handback import FIRST_PAUSE_MS, LONGEST_PAUSE_MS, MAX_PAUSES_MS, VERDICTS, WAITING
from mcp_celery.engine.places import NoPlaceError
from mcp_celery.engine.recovery.model import CLAIM_HOLDS_MS, PUBLISHING_MS, REQUEUED, RequeueVerdict
from mcp_celery.engine.store_mark import StoreMark
from mcp_celery.engine.turns import HeldBack
from mcp_celery.errors import MessageRefusedError, QueueFullError
from mcp_celery.keys import is_shortened
from mcp_celery.sealing import SealError
from mcp_celery.store.codec import Fields, decode_questions, flat_to_mapping, one_of
from mcp_celery.store.keys import DELETED_LIFETIME_MS, RedisKeys
from mcp_celery.store.named import Names, Use
from mcp_celery.store.replies import NextScript
from mcp_celery.store.scripts import Command
from mcp_celery.store.sealed import TaskSeals
from mcp_celery.store.unreadable import UNREADABLE

logger = logging.getLogger(__name__)

Reply = TypeVar("Reply")
ResultKey = Callable[[str], str]
"""Where Celery's result backend keeps a job's result in this same Redis."""
Decode = Callable[[bytes], StoredResult | None]
"""Reads what Celery's result backend stored."""


LoadReply = tuple[Sequence[bytes] | Mapping[bytes, bytes], bytes | None, Sequence[bytes]]
"""Of ``load.lua``: the record, the job's stored result, the questions."""

_NO_QUOTA: Final = Quota("")
"""Of a caller whom the limits do not concern."""
_PUBLICATIONS: Final[tuple[Publication, ...]] = get_args(Publication)
_REQUEUE_VERDICTS: Final[tuple[RequeueVerdict, ...]] = get_args(RequeueVerdict)


def on_index(command: str, index: str, *args: str | bytes) -> Command[Any]:
    """Call one of Redis' own commands on an index, which is deleted first if it has another type."""
    return Command("index", [index], [command, *args], lambda reply: reply)


def load(
    seals: TaskSeals, ref: TaskRef, decode: Decode | None, unreadable: list[bytes] | None = None
) -> Command[StoredTask | None]:
    """Read a record, with the job's stored result where ``decode`` can read it.

    Args:
        seals: Names of the keys, and how texts are opened.
        ref: The task.
        decode: Reads what the result backend stored.
        unreadable: Gets the keys of its questions that cannot be read.
    """

    def parse(reply: Any) -> StoredTask | None:
        return None if reply is None else _stored_task(seals, ref, reply, decode, unreadable)

    keys = seals.keys
    names = [keys.record(ref.scope, ref.task_id), keys.questions(ref.scope, ref.task_id)]
    return Command("load", names, [int(decode is not None)], parse, use="read")


def loaded_directly(answers: Sequence[Any], result_key: str | bytes | None) -> LoadReply | None:
    """What ``load.lua`` would reply, from the answers to its two commands, which were sent without it.

    Args:
        answers: The record, and what is under the key of the result.
        result_key: This key; None where results are not in this Redis, and only the record was read.

    Returns:
        None where only the script can tell: it reads both in one step, and questions as well.
    """
    record = cast("Sequence[bytes] | Mapping[bytes, bytes]", answers[0])
    stored: bytes | None = answers[1] if result_key is not None else None
    fields = record if isinstance(record, Mapping) else dict(zip(record[::2], record[1::2], strict=True))
    status = fields.get(b"status")
    if status in (b"failed", b"cancelled"):
        return fields, None, ()
    if result_key is not None:
        if fields.get(b"result_key") != (result_key.encode() if isinstance(result_key, str) else result_key):
            return None
        # A completed task's result may have gone with the task between the two commands.
        if status == b"completed" and stored is None:
            return None
    # A result beside an open record may have come with the task's end between the two commands. Readers deal with it as
    # with one whose worker did not report it.
    return (fields, stored, ()) if status in (b"working", b"completed") else None


def present(keys: RedisKeys, refs: Sequence[TaskRef]) -> Command[list[TaskRef]]:
    """Which of several tasks there are."""
    return Command(
        "present",
        [keys.record(ref.scope, ref.task_id) for ref in refs],
        [],
        lambda reply: [refs[position - 1] for position in cast("list[int]", reply)],
    )


def page(
    seals: TaskSeals,
    index: str,
    owner: Caller,
    positions: Sequence[str],
    unreadable: list[str | bytes],
    decode: Decode | None,
) -> Command[list[StoredTask]]:
    """Read tasks of an owner's list.

    Args:
        seals: Names of the keys, and how texts are opened.
        index: The list.
        owner: Whose it is.
        positions: Of the tasks, in the list.
        unreadable: Gets the positions of what is damaged.
        decode: Reads what the result backend stored.
    """

    def parse(reply: Any) -> list[StoredTask]:
        found: list[StoredTask] = []
        for place, *stored in cast("list[list[Any]]", reply):
            position: str = place.decode()
            try:
                found.append(_stored_task(seals, TaskRef(owner.scope, _id_at(position)), stored, decode))
            except (NewerFormatError, SealError) as error:  # other processes may read it
                logger.error("left a task out of a list: %s", error)
            except UNREADABLE:
                unreadable.append(position)
        return found

    records = [seals.keys.record(owner.scope, _id_at(position)) for position in positions]
    return Command("page", [index, *records], [int(decode is not None), *positions], parse)


def positions_in(members: Sequence[bytes], unreadable: list[str | bytes]) -> list[str]:
    """The positions of tasks that are members of an owner's list. ``unreadable`` gets the members that are none."""
    found: list[str] = []
    for member in members:
        try:
            position = member.decode()
        except ValueError:
            position = ""
        if ":" in position:
            found.append(position)
        else:
            unreadable.append(member)
    return found


def _id_at(position: str) -> str:
    return position.partition(":")[2]


def _stored_task(
    seals: TaskSeals, ref: TaskRef, reply: Any, decode: Decode | None, unreadable: list[bytes] | None = None
) -> StoredTask:
    flat, stored, questions = cast("LoadReply", reply)
    result = None if stored is None or decode is None else decode(stored)
    record = seals.record(ref, flat_to_mapping(flat))  # first: who may not read it can say nothing of its questions
    open_question = functools.partial(seals.open_question, ref)
    asked = decode_questions(questions, [] if unreadable is None else unreadable, open_question)
    return StoredTask(record, result, asked)


def create(
    keys: RedisKeys,
    record: TaskRecord,
    fields: Fields,
    snapshot: str,
    quota: Quota | None,
    result_key: ResultKey | None,
    idempotency: Idempotency | None = None,
    message: QueueMessage | None = None,
) -> Command[EarlierTask | HeldBack | None]:
    """Keep a new record, its written snapshot, its place in a list, the way back from a shortened Celery id, and the
    message of its job.

    Args:
        keys: Names of the keys.
        record: The new record.
        fields: From :func:`encode_record`.
        snapshot: As it is stored.
        quota: Whose tasks it is one of, and how many there may be.
        result_key: Where the result backend keeps a job's result in this Redis.
        idempotency: The request's idempotency key, None where it has none.
        message: The job's, to be put into its queue; None: it is published otherwise.
    """
    fields = fields | {
        "snapshot_key": keys.snapshot(record.scope, record.task_id),
        "remembered_in": keys.remembered,
    }
    job_id = record.job_id
    if result_key is not None:
        fields["result_key"] = result_key(job_id)
    fields |= _named_indices(keys, record)
    alias = keys.job_alias(job_id)
    deleted = keys.deleted(record.scope, record.task_id)
    waiting = keys.exposed if record.work.is_foreign else keys.unclaimed
    names = [*_kept(keys, record.ref), keys.expiry, alias, waiting, deleted]
    shortened = is_shortened(job_id)
    if shortened:
        fields["alias"] = alias
    position, most_bytes = "", ""
    index = keys.index(record.scope, record.issuer, record.session) if record.listed else None
    if index is not None:
        names.append(index)
        position = record.position
        fields |= {"listed_in": index, "listed_at": position}
    quota = quota or _NO_QUOTA
    occupied = [keys.counted(counter.kind, counter.whose) for counter in quota.counters]
    names += occupied
    fields |= _held(keys, quota, occupied)
    if quota.bytes is not None:
        names.append(keys.counted("stored", quota.requestor))
        most_bytes = quota.bytes
        fields["stored_in"] = names[-1]
    extra: JSONObject = {}
    if idempotency is not None:
        names.append(keys.once(idempotency.name))
        extra |= {"task": record.task_id, "request": idempotency.request}
        fields["idempotency_in"] = names[-1]
    if quota.rates:
        names += [keys.counted("created", limit.whose) for limit in quota.rates]
        extra["rates"] = [[limit.rate.number, limit.rate.window_ms] for limit in quota.rates]
    if quota.line is not None:
        extra["line"] = fields["line"] = keys.line(quota.line)
    if message is not None:
        names += [message.queue, *message.lanes]
        extra |= {"lanes": len(message.lanes)} | ({} if message.most is None else {"most_waiting": message.most})
    pairs = flat(fields)
    kept = [record.expires_at_ms, snapshot, record.key, int(shortened)]
    listed = [position, record.ttl_ms, keys.records(record.scope)]
    look_at = record.created_at_ms if record.work.is_foreign else ""

    limits = [counter.most for counter in quota.counters]
    payload = "" if message is None else message.payload
    options = json.dumps(extra) if extra else ""
    arguments = [*kept, *listed, len(limits), look_at, most_bytes, options, payload, *limits, *pairs]
    more, parse = _named_by(keys, fields), functools.partial(_created, quota, message)
    return Command("create", names, arguments, parse, more=more, learned=_learned(fields, more))


def _named_by(keys: RedisKeys, fields: Fields) -> list[str]:
    """The keys that ``create`` uses because fields of the record name them."""
    found = [fields[name] for name in ("remembered_in", "attended_in") if name in fields]
    if "stored_in" in fields:
        found.append(f"{fields['stored_in']}:bytes")
    if "line" in fields:
        found += [fields["line"], keys.window, keys.turns, keys.slots, keys.waiting]
    return found


def _learned(fields: Fields, more: Sequence[str]) -> dict[Use, Names]:
    """What the process that creates a task knows of the keys that its record names."""
    in_life = ("stored_in", "alias", "listed_in", "idempotency_in", "result_key")
    counted = fields.get("counted_in", "").splitlines()
    learned: dict[Use, Names] = {"life": [*counted, *more, *(fields[name] for name in in_life if name in fields)]}
    if "result_key" in fields:
        learned["read"] = [fields["result_key"]]
    if "idempotency_in" in fields:
        learned["publication"] = [fields["idempotency_in"]]
    return learned


def _created(quota: Quota, message: QueueMessage | None, reply: Any) -> EarlierTask | HeldBack | None:
    """Read the reply of ``create``.

    Raises:
        LimitExceededError: A limit was reached.
        MessageRefusedError: The message could not be put into its queue.
    """
    if isinstance(reply, list):
        if len(refusal := cast("list[int]", reply)) == 2:
            raise quota.rates[refusal[0] - 1].refusal(refusal[1])
        if len(refusal) == 1 and message is not None:
            raise _refused(message, cast("list[int | bytes]", reply)[0])
        return _earlier_task(reply)
    if isinstance(reply, bytes):
        return HeldBack(int(reply))
    refused = cast(int, reply)
    if refused > 0:
        raise quota.counters[refused - 1].refusal()
    if refused < 0:
        raise quota.too_many_bytes(-refused)
    return None


def _refused(message: QueueMessage, reason: int | bytes) -> QueueFullError | MessageRefusedError:
    """Why a message is not in its queue: so many wait there, or what Redis says."""
    if isinstance(reason, bytes):
        return MessageRefusedError(reason.decode(errors="replace"))
    return QueueFullError(message.most or reason, retry_after_ms=message.retry_after_ms)


def earlier(keys: RedisKeys, record: TaskRecord, idempotency: Idempotency) -> Command[EarlierTask | None]:
    """The task that an idempotency key leads to, for a request that would create another one."""
    return Command(
        "earlier",
        [keys.once(idempotency.name)],
        [idempotency.request, keys.records(record.scope), record.task_id, int(not record.work.is_foreign)],
        lambda reply: None if reply is None else _earlier_task(reply),
    )


def _earlier_task(reply: Any) -> EarlierTask:
    task_id, is_same, publication = cast("tuple[bytes, int, bytes]", reply)
    return EarlierTask(task_id.decode(), is_same == 1, one_of(_PUBLICATIONS, publication.decode()))


def _held(keys: RedisKeys, quota: Quota, occupied: Sequence[str]) -> Fields:
    """The fields of what a task counts in: the counters that it occupies, and the places that its jobs take."""
    places = [keys.running(limit.kind, limit.whose) for limit in quota.places]
    window = [] if quota.line is None else [keys.window]
    names = [*occupied, *places, *window]
    counted = {"counted_in": "\n".join(names)} if names else {}
    if not places:
        return counted
    return {
        **counted,
        "limits": "\n".join(f"{one.most} {name}" for one, name in zip(quota.places, places, strict=True)),
    }


def _named_indices(keys: RedisKeys, record: TaskRecord) -> Fields:
    """The fields that name indices which only some tasks are in."""
    attended = {} if record.abandon_after_ms is None else {"attended_in": keys.attended}
    return attended if record.webhook is None else {**attended, "webhooks_in": keys.webhooks}


def count_failed_lookups(keys: RedisKeys, requestor: str, number: int, *, window_ms: int) -> Command[FailedLookups]:
    """Count look-ups of a requestor that found nothing."""
    names = [keys.counted("failed", requestor)]
    return Command("failed", names, [number, window_ms], lambda reply: FailedLookups(*cast("tuple[int, int]", reply)))


def delete(keys: RedisKeys, ref: TaskRef) -> Command[bool]:
    """Take back a task whose job was not published. False: it was, and has begun."""
    deleted = keys.deleted(ref.scope, ref.task_id)
    names = [*_kept(keys, ref), keys.expiry, keys.remembered, keys.unclaimed, deleted]
    return Command("delete", names, [keys.claims(""), DELETED_LIFETIME_MS], lambda reply: reply == 1, use="life")


def retire(keys: RedisKeys, ref: TaskRef, at_ms: int) -> Command[None]:
    """Let a task go at ``at_ms``, if that is before its time."""
    record, snapshot = _kept(keys, ref)
    names = [record, *asked(keys, ref), snapshot, keys.expiry, keys.ended]
    return Command("retire", names, [at_ms], lambda _: None, use="life")


def keep(keys: RedisKeys, ref: TaskRef, extension: Extension) -> Command[None]:
    """Let an open task live longer."""
    record, snapshot = _kept(keys, ref)
    names = [record, *asked(keys, ref), snapshot, keys.expiry]
    return Command("keep", names, [extension.until_ms, extension.max_ttl_ms], lambda _: None, use="life")


def attend(keys: RedisKeys, ref: TaskRef) -> Command[None]:
    """Note that the owner of a task is there."""
    return Command("attend", [keys.record(ref.scope, ref.task_id), keys.attended], [], lambda _: None)


def finish(seals: TaskSeals, ref: TaskRef, change: Change, result: EncodedResult) -> Command[bool]:
    """Store a job's result and move its task. False: the move was refused, or the task is gone."""
    keys = seals.keys
    return Command(
        "finish",
        [*moved(keys, ref), result.key, *asked(keys, ref), keys.expiry, keys.remembered, keys.ended],
        [
            *_allowed(change),
            result.payload,
            keys.claims(""),
            change.at_ms,
            cause_of(change),
            *flat(seals.change(ref, change)),
        ],
        lambda reply: reply == 1,
        change.call,
        use="end",
    )


def change(seals: TaskSeals, ref: TaskRef, change: Change) -> Command[Changed | None]:
    """Move a task, if the status table and the attempt allow it."""
    keys = seals.keys

    def parse(reply: Any) -> Changed | None:
        if reply is None:
            return None
        moved, fields = cast("tuple[int, list[bytes]]", reply)
        return Changed(moved == 1, seals.record(ref, flat_to_mapping(fields)))

    return Command(
        "transition",
        [*moved(keys, ref), *asked(keys, ref), keys.unclaimed],
        [
            *_allowed(change),
            "" if change.unless_begun is None else change.unless_begun,
            keys.claims("") if change.to in TERMINAL else "",
            change.at_ms,
            cause_of(change),
            "" if change.retries is None else change.retry_at_ms or change.at_ms,
            change.delivery,
            *flat(seals.change(ref, change)),
        ],
        parse,
        change.call,
        use="end" if change.to in TERMINAL or change.retries is not None else None,
    )


def _kept(keys: RedisKeys, ref: TaskRef) -> list[str]:
    """The keys of what is kept of a task: its record and its snapshot."""
    return [keys.record(ref.scope, ref.task_id), keys.snapshot(ref.scope, ref.task_id)]


def moved(keys: RedisKeys, ref: TaskRef) -> list[str]:
    """The keys of a move: the record and its channel."""
    return [keys.record(ref.scope, ref.task_id), keys.channel(ref.scope, ref.task_id)]


def asked(keys: RedisKeys, ref: TaskRef) -> list[str]:
    """The keys of the questions and of the answers."""
    return [keys.questions(ref.scope, ref.task_id), keys.answers(ref.scope, ref.task_id)]


def _allowed(change: Change) -> tuple[str, str | int]:
    """The statuses and the attempt from which a move is allowed."""
    return f",{','.join(sorted(sources_of(change.to)))},", "" if change.attempt is None else change.attempt


def flat(fields: Fields) -> list[str]:
    """Fields and their values, in turn."""
    return [text for pair in fields.items() for text in pair]


class Started(NamedTuple):
    """What a body begins with.

    Attributes:
        snapshot: The written snapshot, empty where it is gone.
        leg: Which job of the task this is.
        answers: What the leg before has left, as :func:`mcp_celery.store.codec.continued` reads it.
        fixed: The values of the record's fields that never change.
        names: The keys that the end of the task needs.
    """

    snapshot: bytes
    leg: int
    answers: dict[str, str]
    fixed: list[str]
    names: list[bytes]


def start(keys: RedisKeys, ref: TaskRef, start: Start) -> Command[Started | None]:
    """Let a body begin, and give what it begins with. None: it must not."""
    record, channel = moved(keys, ref)

    def parse(reply: Any) -> Started | None:
        if reply is None:
            return None
        if isinstance(reply, bytes):
            raise OtherVersionError(reply.decode())
        if isinstance(reply, int):
            raise NoPlaceError(reply)
        snapshot, leg, answers, fixed, names = cast(
            "tuple[bytes, bytes, list[bytes], list[bytes | None], list[bytes]]", reply
        )
        return Started(snapshot, int(leg), flat_to_mapping(answers), [(one or b"").decode() for one in fixed], names)

    return Command(
        "start",
        [
            *(record, keys.snapshot(ref.scope, ref.task_id), *asked(keys, ref), channel),
            *(keys.unclaimed, keys.due, keys.workers),
        ],
        [
            *(start.attempt, start.retries, start.at_ms, start.delivery, start.worker, keys.claims(""), start.key),
            *(int(start.fingerprint is not None), start.fingerprint or "", CLAIM_HOLDS_MS),
        ],
        parse,
        more=[keys.remembered, *([keys.claims(start.worker)] if start.worker else [])],
    )


def hand_back(keys: RedisKeys, ref: TaskRef, handback: HandBack) -> Command[HandedBack]:
    """Hand a job back, if another live worker advertises the record's fingerprint."""

    def parse(reply: Any) -> HandedBack:
        verdict, pause_ms = cast("tuple[bytes, int]", reply)
        return HandedBack(one_of(VERDICTS, verdict.decode()), pause_ms)

    return Command(
        "hand_back",
        [*moved(keys, ref), keys.workers, keys.due, keys.questions(ref.scope, ref.task_id), keys.unclaimed],
        [
            *(handback.attempt, handback.retries, handback.worker, handback.key, handback.most, MAX_PAUSES_MS),
            *(FIRST_PAUSE_MS, LONGEST_PAUSE_MS, str(handback.share), WAITING, keys.claims(""), keys.components("")),
        ],
        parse,
        handback.call,
        more=[keys.remembered, keys.claims(handback.worker)],
    )


def requeue(keys: RedisKeys, record: TaskRecord, *, force: bool) -> Command[RequeueVerdict]:
    """Make a task's job due at once, unless its body has started and may have had effects; ``force``: even then."""
    return Command(
        "requeue",
        [*moved(keys, record.ref), keys.unclaimed, keys.due],
        [record.key, int(force), REQUEUED, keys.claims(""), PUBLISHING_MS],
        lambda reply: one_of(_REQUEUE_VERDICTS, reply.decode()),
    )


def next_of(keys: RedisKeys, script: NextScript) -> Command[None]:
    """The call of a script that another one leaves to its caller."""
    key = script.key
    if script.name == "grant_places":
        names: list[str | bytes] = [key, key + b":waiting", keys.waiting, keys.due]
    elif script.name == "grant_turns":
        names = [key, keys.turns, keys.slots, keys.waiting, keys.due]
    else:
        return Command(script.name, [key, *script.keys], script.args, lambda _: None)
    return Command(script.name, names, [keys.root], lambda _: None, more=script.keys)


def mark(keys: RedisKeys, new: StoreMark | None = None) -> Command[StoreMark | None]:
    """The store's mark; ``new`` becomes that of a store that has none."""

    def parse(reply: Any) -> StoreMark | None:
        return StoreMark.parse(cast("bytes", reply).decode()) if reply else None

    return Command("mark", [keys.mark], [str(new or "")], parse)


def claim(keys: RedisKeys, ref: TaskRef, *, attempt: int, retries: int, claim: Claim) -> Command[bool]:
    """Note which worker received a job."""
    return Command(
        "claim",
        [keys.record(ref.scope, ref.task_id), keys.unclaimed, keys.workers],
        [attempt, retries, claim.worker, claim.at_ms, keys.claims(""), CLAIM_HOLDS_MS],
        lambda reply: cast(int, reply) == 1,
        more=[keys.claims(claim.worker), keys.remembered],
    )
