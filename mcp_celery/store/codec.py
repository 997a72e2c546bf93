"""A task record as a Redis hash. Absent values are absent fields; where one must go, an empty text stands for None."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import (
    Change,
    Claim,
    ExposedWork,
    Progress,
    Question,
    RpcError,
    TaskRecord,
    TaskStatus,
    decode_answer,
    decode_question,
    leg_answers,
    next_round,
)
from mcp_celery.jsonable import json_text, utf8_text
from mcp_celery.keys import TaskType

Fields = dict[str, str]


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
        "hides_id": "1" if record.hides_id else None,
        "start_before_ms": None if record.start_before_ms is None else str(record.start_before_ms),
        "work": None if (work := record.work) is None else json.dumps([work.parts, work.gathered, work.terminate]),
        "revision": str(record.revision),
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


def flat_to_mapping(flat: Sequence[bytes]) -> dict[str, str]:
    """A hash as Lua returns it, field and value in turn."""
    texts = [one.decode() for one in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def decode_record(fields: Mapping[str, str]) -> TaskRecord:
    """The record in a hash."""
    get = fields.get
    return TaskRecord(
        task_id=fields["task_id"],
        scope=get("scope"),
        issuer=get("issuer"),
        session=get("session"),
        job_name=get("job_name"),
        task_type=cast(TaskType, fields["type"]),
        component=fields["component"],
        created_at_ms=int(fields["created_at_ms"]),
        updated_at_ms=int(fields["updated_at_ms"]),
        ttl_ms=int(fields["ttl_ms"]),
        poll_interval_ms=int(fields["poll_interval_ms"]),
        status=cast(TaskStatus, fields["status"]),
        status_message=get("status_message") or None,
        is_error=get("is_error") == "1",
        error=_error(get("error")),
        progress=_progress(get("progress")),
        attempt=int(fields["attempt"]),
        retries=int(get("retries") or 0),
        retry_at_ms=int(fields["retry_at_ms"]) if "retry_at_ms" in fields else None,
        redeliveries=int(get("redeliveries") or 0),
        idempotent=get("idempotent") == "1",
        listed="unlisted" not in fields,
        leg=int(fields["leg"]),
        hides_id="hides_id" in fields,
        claim=_claim(fields),
        started_at_ms=int(fields["started_at_ms"]) if "started_at_ms" in fields else None,
        start_before_ms=int(fields["start_before_ms"]) if "start_before_ms" in fields else None,
        work=decode_work(get("work")),
        revision=int(fields["revision"]),
    )


def decode_work(text: str | None) -> ExposedWork | None:
    """What a record says of exposed work."""
    return None if text is None else ExposedWork(*cast("tuple[int, int, bool]", json.loads(text)))


def _error(text: str | None) -> RpcError | None:
    if text is None:
        return None
    code, message, data = cast("tuple[int, str, Any]", json.loads(text))
    return RpcError(code, message, data)


def _progress(text: str | None) -> Progress | None:
    if text is None:
        return None
    value, total = cast("tuple[float, float | None]", json.loads(text))
    return Progress(value, total)


def _claim(fields: Mapping[str, str]) -> Claim | None:
    if "claim_worker" not in fields:
        return None
    return Claim(fields["claim_worker"], int(fields["claim_at_ms"]))


def decode_questions(fields: Mapping[str, str]) -> list[Question]:
    """The questions in a hash, in the order of asking."""
    placed = [(*text.split(":", 1), key) for key, text in fields.items()]
    return [decode_question(key, text) for _, text, key in sorted(placed, key=lambda one: int(one[0]))]


def continued(snapshot: TaskContextSnapshot, leg: int, answers: Mapping[str, str]) -> TaskContextSnapshot:
    """The snapshot for a leg: after the first with what the leg before left in the hash of the answers.

    Raises:
        JobFailedError: The client answered with an error.
    """
    if leg == 1:
        return snapshot
    state = json.loads(answers.get("", "null"))
    given = {key: decode_answer(text) for key, text in answers.items() if key}
    return next_round(snapshot, leg_answers(leg - 1, given), state)
