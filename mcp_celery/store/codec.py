"""A task record as a Redis hash. Absent values are absent fields; where one must go, an empty text stands for None."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, cast

from mcp_celery.common.formats import FORMAT, UNNUMBERED, NewerFormatError, is_readable
from mcp_celery.common.jsonable import finite_number, json_text, utf8_text
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    OWN_WORK,
    Change,
    Claim,
    ForeignWork,
    JSONObject,
    Progress,
    Question,
    RpcError,
    TaskRecord,
    WebhookKind,
    Work,
    decode_answer,
    decode_question,
    leg_answers,
    next_round,
)
from mcp_celery.engine.ids import is_wire_task_id
from mcp_celery.engine.recovery.model import PublishedJob
from mcp_celery.engine.status import MOVES
from mcp_celery.keys import MAX_LEGS, METHODS, Hidden
from mcp_celery.sealing import SealError, is_sealed
from mcp_celery.store.fields import FIXED
from mcp_celery.store.unreadable import UNREADABLE

logger = logging.getLogger(__name__)

Fields = dict[str, str]
Opener = Callable[[str], str]
"""Gives the text in a stored one, which may be sealed. Raises ``SealError``."""
Name = TypeVar("Name", bound=str)
_MAX_TIME_MS: Final = 253_402_300_799_999
"""The last millisecond of the year 9999."""


def encode_record(record: TaskRecord) -> Fields:
    """The fields of a new record."""
    fields: dict[str, str | None] = {
        "key": record.key,
        "task_id": record.task_id,
        "scope": record.scope,
        "issuer": record.issuer,
        "session": record.session,
        "job_name": record.job_name,
        "type": record.task_type,
        "component": record.component,
        "created_at_ms": str(record.created_at_ms),
        "updated_at_ms": str(record.updated_at_ms),
        "ttl_ms": str(record.ttl_ms),
        "poll_interval_ms": str(record.poll_interval_ms),
        "status": record.status,
        "status_message": record.status_message,
        "attempt": str(record.attempt),
        "idempotent": "1" if record.idempotent else None,
        "unlisted": None if record.listed else "1",
        "leg": str(record.leg),
        "hidden": str(int(record.hidden)) if record.hidden else None,
        "start_before_ms": None if record.start_before_ms is None else str(record.start_before_ms),
        "work": _encode_work(record.work),
        "revision": str(record.revision),
        "declared_as": record.declared_as,
        "fingerprint": record.fingerprint,
        "options": json.dumps(dict(record.options), default=str) if record.options else None,
        "traceparent": record.traceparent,
        "abandon_after_ms": None if record.abandon_after_ms is None else str(record.abandon_after_ms),
        "webhook_contents": "1" if record.webhook == "contents" else None,
        "format": str(FORMAT),
    }
    return {name: value for name, value in fields.items() if value is not None}


def encode_change(change: Change) -> Fields:
    """The fields that a change sets, but for its time."""
    fields: Fields = {"status": change.to}
    if change.status_message is not None:
        fields["status_message"] = utf8_text(change.status_message)
    if change.progress is not None:
        fields["progress"] = json.dumps([change.progress.value, change.progress.total])
    if change.is_error:
        fields["is_error"] = "1"
    if change.retries is not None:
        fields["retries"] = str(change.retries)
    if change.retry_at_ms is not None:
        fields["retry_at_ms"] = str(change.retry_at_ms)
    if change.started_at_ms is not None:
        fields["started_at_ms"] = str(change.started_at_ms)
    if change.error is not None:
        fields["error"] = json_text([change.error.code, change.error.message, change.error.data])
    return fields


def flat_to_mapping(flat: Sequence[bytes] | Mapping[bytes, bytes]) -> dict[str, str]:
    """A hash as Lua returns it, field and value in turn, or as Redis does upon a connection of RESP3."""
    if isinstance(flat, Mapping):
        return {name.decode(): value.decode() for name, value in flat.items()}
    texts = [one.decode() for one in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def fixed_of(fields: Mapping[str, str]) -> list[str]:
    """The values of the fields that never change, in the order of the table; '' for an absent one."""
    return [fields.get(name, "") for name in FIXED]


def as_it_is(text: str) -> str:
    """An opener of texts that are not sealed."""
    return text


class Openers(NamedTuple):
    """Opens the fields of a record that may be sealed.

    Attributes:
        error: Opens the error of a failed task.
        message: Opens the status message.
    """

    error: Opener = as_it_is
    message: Opener = as_it_is


NOTHING_SEALED: Final = Openers()
"""For records that hold no sealed text."""


def decode_record(fields: Mapping[str, str], openers: Openers = NOTHING_SEALED) -> TaskRecord:
    """The record in a hash.

    Args:
        fields: The hash.
        openers: What opens its sealed fields.

    Raises:
        NewerFormatError: A later release wrote it.
        ValueError: A field cannot be read.
        KeyError: A field is missing.
    """
    get = fields.get
    if not is_readable(form := int(get("format") or UNNUMBERED)):
        raise NewerFormatError("the record", form)
    return TaskRecord(
        task_id=_task_id(fields["task_id"]),
        scope=get("scope"),
        issuer=get("issuer"),
        session=get("session"),
        job_name=get("job_name"),
        task_type=one_of(METHODS, fields["type"]),
        component=_some(fields["component"]),
        created_at_ms=_time(fields["created_at_ms"]),
        updated_at_ms=_time(fields["updated_at_ms"]),
        ttl_ms=_time(fields["ttl_ms"]),
        poll_interval_ms=int(fields["poll_interval_ms"]),
        status=one_of(MOVES, fields["status"]),
        status_message=openers.message(get("status_message") or "") or None,
        is_error=get("is_error") == "1",
        error=None if (error := get("error")) is None else decode_error(openers.error(error)),
        progress=_progress(get("progress")),
        attempt=int(fields["attempt"]),
        retries=int(get("retries") or 0),
        retry_at_ms=int(fields["retry_at_ms"]) if "retry_at_ms" in fields else None,
        redeliveries=int(get("redeliveries") or 0),
        idempotent=get("idempotent") == "1",
        listed="unlisted" not in fields,
        leg=leg_number(int(fields["leg"])),
        hidden=Hidden(int(get("hidden") or 0)),
        claim=_claim(fields),
        started_at_ms=int(fields["started_at_ms"]) if "started_at_ms" in fields else None,
        start_before_ms=int(fields["start_before_ms"]) if "start_before_ms" in fields else None,
        work=decode_work(get("work")),
        revision=int(fields["revision"]),
        declared_as=get("declared_as"),
        fingerprint=get("fingerprint"),
        options=_options(get("options")),
        traceparent=get("traceparent"),
        webhook=_webhook(fields),
        abandon_after_ms=_time(fields["abandon_after_ms"]) if "abandon_after_ms" in fields else None,
        waits_in=get("waits_in"),
    )


def _webhook(fields: Mapping[str, str]) -> WebhookKind | None:
    if "webhooks_in" not in fields:
        return None
    return "contents" if fields.get("webhook_contents") == "1" else "state"


PUBLISHED: Final = ("key", "created_at_ms", "job_name", "declared_as", "options", "fingerprint")
"""The fields of a record that say where its job was published."""


def decode_published(values: Sequence[bytes | None], at_ms: int | None = None) -> PublishedJob:
    """Read where the job of a task was published.

    Args:
        values: Those of the fields :data:`PUBLISHED`.
        at_ms: When, None for when the task was created.

    Raises:
        ValueError: They cannot be read.
        TypeError: Likewise.
    """
    key, created, job_name, declared_as, options, fingerprint = (
        None if one is None else one.decode() for one in values
    )
    recorded = None if fingerprint is None else tuple(sorted(_options(options).items()))
    hash(recorded)  # a list among the values was not written by this package
    return PublishedJob(key or "", int(created or 0) if at_ms is None else at_ms, job_name, declared_as, recorded)


def _options(text: str | None) -> JSONObject:
    return {} if text is None else dict(cast(JSONObject, json.loads(text)))


def _encode_work(work: Work) -> str | None:
    return json.dumps([work.parts, work.gathered, work.may_terminate]) if work.is_foreign else None


def decode_work(text: str | None) -> Work:
    """The jobs that the field ``work`` of a record describes. None: the component's own.

    Raises:
        ValueError: It cannot be read.
    """
    if text is None:
        return OWN_WORK
    parts, gathered, may_terminate = cast("tuple[int, int, bool]", json.loads(text))
    if not 0 <= gathered <= leg_number(parts):
        raise ValueError("the number of gathered jobs is not within their number")
    return ForeignWork(parts, gathered, bool(may_terminate))


def leg_number(number: int) -> int:
    """Check the number of a task's job.

    Raises:
        ValueError: It is not within 1…``MAX_LEGS``, so no Celery id can be made of it.
    """
    if not isinstance(number, int) or not 1 <= number <= MAX_LEGS:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"the number of a job must be within 1…{MAX_LEGS}")
    return number


def _task_id(text: str) -> str:
    """Check a task's id.

    Raises:
        ValueError: No Celery id can be made of it.
    """
    if not is_wire_task_id(text):
        raise ValueError("the task's id does not have the form that this package makes")
    return text


def _some(text: str) -> str:
    """A text that is not empty.

    Raises:
        ValueError: It is.
    """
    if not text:
        raise ValueError("a name is empty")
    return text


def _time(text: str) -> int:
    """Read a time or a duration, in ms.

    Raises:
        ValueError: It is not a number, or no date can be made of it.
    """
    if not 0 <= (number := int(text)) <= _MAX_TIME_MS:
        raise ValueError("a time is out of range")
    return number


def one_of(names: Iterable[Name], text: object) -> Name:
    """Read one of several names.

    Raises:
        ValueError: The text is none of the names.
    """
    for name in names:
        if name == text:
            return name
    raise ValueError(f"unknown value of a field: {text!r:.50}")


def decode_error(text: str) -> RpcError:
    """The error of a failed task.

    Raises:
        ValueError: It cannot be read.
    """
    code, message, data = cast("tuple[Any, Any, Any]", json.loads(text))
    return RpcError(int(code), str(message), data)


def _progress(text: str | None) -> Progress | None:
    if text is None:
        return None
    value, total = cast("tuple[object, object]", json.loads(text))
    if (number := finite_number(value)) is None:
        raise ValueError("a progress is not a number")
    return Progress(number, finite_number(total))


def _claim(fields: Mapping[str, str]) -> Claim | None:
    if "claim_worker" not in fields:
        return None
    return Claim(fields["claim_worker"], int(fields["claim_at_ms"]))


def decode_questions(
    flat: Sequence[bytes], unreadable: list[bytes], open_question: Callable[[str, str], str]
) -> list[Question]:
    """The questions in a hash, in the order of asking. Those that cannot be read are left out.

    Args:
        flat: The hash as Lua returns it.
        open_question: Opens a question, given its key and the stored text.
        unreadable: Gets the keys of those that no process can read: not of one that another process may have sealed.
    """
    placed: list[tuple[int, Question]] = []
    for key, kept in zip(flat[::2], flat[1::2], strict=True):
        text = ""
        try:
            place, text = kept.decode().split(":", 1)
            placed.append((int(place), decode_question(key.decode(), open_question(key.decode(), text))))
        except UNREADABLE as error:
            if isinstance(error, SealError) and is_sealed(text):
                logger.error("left a question out of a task: %s", error)
            else:
                unreadable.append(key)
    return [question for _, question in sorted(placed, key=lambda one: one[0])]


def continued(
    snapshot: TaskContextSnapshot,
    leg: int,
    answers: Mapping[str, str],
    open_answer: Callable[[str, str], str],
    open_state: Opener,
) -> TaskContextSnapshot:
    """The snapshot for a leg: after the first with what the leg before left in the hash of the answers.

    Args:
        snapshot: The creating request.
        leg: Which job of the task begins.
        answers: The hash.
        open_answer: Opens an answer, given its question's key and the stored text.
        open_state: Opens what the tool wants back.

    Raises:
        JobFailedError: The client answered with an error.
    """
    if leg == 1:
        return snapshot
    state = json.loads(open_state(answers[""]) if "" in answers else "null")
    given = {key: decode_answer(open_answer(key, text)) for key, text in answers.items() if key}
    return next_round(snapshot, leg_answers(leg - 1, given), state)
