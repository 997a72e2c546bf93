"""The table of a record's fields is complete: scripts and codec use no other, and each is written where it says."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import resources
from typing import Final

from mcp_celery.engine import Change, ForeignWork, Idempotency, PlaceLimit, Progress, RpcError
from mcp_celery.keys import Hidden
from mcp_celery.server.keyring import snapshots_with
from mcp_celery.store.codec import encode_change, encode_record
from mcp_celery.store.commands import create
from mcp_celery.store.fields import FIELDS, LUA, reset_by
from mcp_celery.store.keys import RedisKeys
from mcp_celery.store.sealed import TaskSeals
from tests.support.worlds import a_record, open_tasks

NAMES: Final = frozenset(field.name for field in FIELDS)
SCRIPTS: Final[Mapping[str, str]] = {
    path.name.removesuffix(".lua"): path.read_text(encoding="utf-8")
    for path in resources.files("mcp_celery.store").iterdir()
    if path.name.endswith(".lua")
}
_CALL: Final = re.compile(r"(?:redis\.call|unless_other_type)\('(H[A-Z]+)', (?:KEYS\[1\]|record|key|KEYS\[i\])(, )")
_WRITES: Final = frozenset({"HSET", "HSETNX", "HINCRBY"})
_NAME: Final = re.compile(r"'([a-z_]+)'")


def _arguments(text: str) -> list[str]:
    """What stands between here and the closing bracket, split at commas outside brackets."""
    found, depth = [""], 0
    for sign in text:
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(sign, 0)
        if depth < 0:
            return [one.strip() for one in found]
        if sign == "," and depth == 0:
            found.append("")
        else:
            found[-1] += sign
    raise AssertionError("a call without an end")


def _uses(script: str) -> Iterator[tuple[str, str]]:
    """The commands on a record in a script, and the names of fields that each has."""
    for call in _CALL.finditer(script):
        command, arguments = call[1], _arguments(script[call.end() :])
        if command in _WRITES:
            arguments = arguments[::2] if command == "HSET" else arguments[:1]
        for argument in arguments:
            if name := _NAME.fullmatch(argument):
                yield command, name[1]


def test_no_field_is_listed_twice() -> None:
    assert len(NAMES) == len(FIELDS)


def test_scripts_name_fields_of_the_table_only() -> None:
    unknown = {(file, name) for file, text in SCRIPTS.items() for _, name in _uses(text) if name not in NAMES}
    assert unknown == set()


def test_the_codec_names_fields_of_the_table_only() -> None:
    assert {*_created(), *_changed()} <= NAMES


def test_each_field_is_written_where_the_table_says() -> None:
    writers = defaultdict[str, set[str]](set)
    for file, text in SCRIPTS.items():
        for command, name in _uses(text):
            if command in _WRITES:
                writers[name].add(file)
    for name in _created():
        writers[name].add("create")
    for name in _changed():
        writers[name].add("change")
    said = {field.name: set(field.writers) for field in FIELDS}
    assert {name: found for name, found in writers.items() if found != said[name]} == {}
    assert NAMES - writers.keys() == set()


def test_lua_gets_the_lists_of_what_a_step_resets() -> None:
    assert set(reset_by("release")) < set(reset_by("attempt")) < set(reset_by("leg"))
    assert LUA.splitlines()[0] == "local RESET_BY_RELEASE = {'claim_worker', 'claim_retries', 'claim_at_ms'}"


def _created() -> set[str]:
    """The fields of a new record that has everything."""
    record = replace(
        a_record(scope="alice", component="x" * 200),
        session="s",
        job_name="j",
        declared_as="d",
        fingerprint="f",
        options={"queue": "q"},
        work=ForeignWork(parts=2),
        idempotent=True,
        hidden=Hidden.COMPONENT,
        start_before_ms=1,
        status_message="m",
        max_ttl_ms=1,
        traceparent="t",
        webhook="contents",
        abandon_after_ms=1,
    )
    keys = RedisKeys("p", "n")
    sealed = TaskSeals(keys, snapshots_with(["a key for tests that has more than 32 bytes"])).new_record(record)
    fields = set(sealed) | set(encode_record(replace(record, listed=False)))
    quota = replace(open_tasks("r", 1, bytes_=1), places=(PlaceLimit("scope", "r", 1),), line="r")
    once = Idempotency("k", "r")
    command = create(keys, record, encode_record(record), "{}", quota, lambda job_id: job_id, once)
    # The texts among the arguments that are fields of the table.
    return fields | {str(one) for one in command.args if one in NAMES}


def _changed() -> set[str]:
    """The fields of a change that sets everything."""
    change = Change(
        to="failed",
        status_message="m",
        is_error=True,
        error=RpcError(1, "e"),
        progress=Progress(1),
        retries=1,
        retry_at_ms=1,
        started_at_ms=1,
    )
    return set(encode_change(change))
