"""A record as a Redis hash: what is read is what was written."""

from dataclasses import replace
from typing import get_args

from hypothesis import example, given
from hypothesis import strategies as st

from mcp_celery.engine import Change, Claim, Progress, RpcError, TaskRecord, TaskStatus
from mcp_celery.keys import TaskType
from mcp_celery.store.codec import decode_record, encode_change, encode_record, flat_to_mapping

texts = st.text(st.characters(exclude_categories=["Cs"]))
some_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
milliseconds = st.integers(0, 253_402_300_799_999)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
statuses: st.SearchStrategy[TaskStatus] = st.sampled_from(get_args(TaskStatus))
task_types: st.SearchStrategy[TaskType] = st.sampled_from(get_args(TaskType))
new_records = st.builds(
    TaskRecord,
    task_id=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    scope=st.none() | some_texts,
    issuer=st.none() | texts,
    session=st.none() | some_texts,
    job_name=st.none() | some_texts,
    task_type=task_types,
    component=some_texts,
    created_at_ms=milliseconds,
    updated_at_ms=milliseconds,
    ttl_ms=milliseconds,
    poll_interval_ms=milliseconds,
    status=statuses,
    status_message=st.none() | some_texts,
    attempt=st.integers(1, 99),
    leg=st.integers(1, 9999),
    revision=st.integers(1, 2**40),
)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
changes = st.builds(
    Change,
    to=statuses,
    status_message=st.none() | texts,
    is_error=st.booleans(),
    error=st.none() | st.builds(RpcError, st.integers(), texts, json_values),
    progress=st.none() | st.builds(Progress, numbers, st.none() | numbers),
    at_ms=milliseconds,
)


def stored(fields: dict[str, str]) -> dict[str, str]:
    """The fields as Redis gives them back."""
    return flat_to_mapping([one.encode() for pair in fields.items() for one in pair])


@given(new_records)
def test_a_new_record_is_read_as_it_was_written(record: TaskRecord) -> None:
    assert decode_record(stored(encode_record(record))) == record


@given(new_records, changes)
def test_a_change_sets_what_it_names_and_keeps_the_rest(record: TaskRecord, change: Change) -> None:
    read = decode_record(stored(encode_record(record) | encode_change(change)))
    message = record.status_message if change.status_message is None else change.status_message or None
    assert read == replace(
        record,
        status=change.to,
        status_message=message,
        is_error=change.is_error,
        error=change.error,
        progress=change.progress,
    )


@given(new_records, changes)
def test_a_later_change_without_details_keeps_the_earlier_ones(record: TaskRecord, change: Change) -> None:
    later = Change(to="working")
    fields = encode_record(record) | encode_change(change)
    before, after = decode_record(stored(fields)), decode_record(stored(fields | encode_change(later)))
    assert after == replace(before, status="working")


@given(new_records, st.builds(Claim, some_texts, milliseconds), milliseconds)
def test_fields_that_scripts_write_are_read(record: TaskRecord, claim: Claim, started_at_ms: int) -> None:
    noted = {
        "claim_worker": claim.worker,
        "claim_at_ms": str(claim.at_ms),
        "started_at_ms": str(started_at_ms),
    }
    assert decode_record(stored(encode_record(record) | noted)) == replace(
        record, claim=claim, started_at_ms=started_at_ms
    )


@given(new_records)
def test_fields_of_a_later_version_are_ignored(record: TaskRecord) -> None:
    assert decode_record(stored(encode_record(record) | {"later": "field"})) == record


@given(st.text(st.characters()))
@example("cannot read \udcff.txt")
def test_a_message_of_any_characters_can_be_stored(message: str) -> None:
    # Lone surrogates too: `os.listdir` gives names with them, and a tool tells its progress with such names.
    for text in encode_change(Change(to="working", status_message=message)).values():
        text.encode()
