"""The compound key, its Celery id and the Redis keys: nothing that goes in is lost, confused or able to break out."""

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcp_celery.broker.naming import default_queue_name, job_name, slug
from mcp_celery.engine.ids import is_wire_task_id
from mcp_celery.keys import (
    MAX_JOB_ID_BYTES,
    Hidden,
    TaskKeyParts,
    TaskType,
    build_task_key,
    celery_job_id,
    get_client_task_id_from_key,
    is_shortened,
    later_job_id,
    parse_task_key,
    task_key_from_job_id,
    task_redis_prefix,
)
from mcp_celery.store.keys import RedisKeys

TRICKY = [":", "|", "%", "#", "~", "!", "?", "/", " ", "\0", "%3A", "~~", "%7E", "~7E", "a:b", "ü", "任务", "🙂", "a!2"]
texts = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.sampled_from(TRICKY))
task_types: st.SearchStrategy[TaskType] = st.sampled_from(["tool", "prompt", "resource"])
parts = st.builds(TaskKeyParts, st.none() | texts, texts, task_types, texts)
own_ids = st.text("ABCxyz019_-", min_size=1, max_size=64)
"""Task ids as we make them; only those are ever part of a Celery id."""
own_parts = st.builds(TaskKeyParts, st.none() | texts, own_ids, task_types, texts)
legs = st.integers(1, 9999)


def key_of(found: TaskKeyParts) -> str:
    return build_task_key(found.task_scope, found.client_task_id, found.task_type, found.component_identifier)


class TestCompoundKey:
    @pytest.mark.shows("C1")
    @given(parts)
    def test_parsing_gives_back_what_was_built(self, found: TaskKeyParts) -> None:
        assert parse_task_key(key_of(found)) == found

    @pytest.mark.parametrize(
        ("scope", "task_type", "component", "key"),
        [
            ("client-a", "tool", "my_tool", "auth:client-a:task456:tool:my_tool"),
            ("client-a|alice", "prompt", "brief", "auth:client-a%7Calice:task456:prompt:brief"),
            (None, "tool", "my_tool", "anon:task456:tool:my_tool"),
            (None, "resource", "file://data.txt", "anon:task456:resource:file%3A%2F%2Fdata.txt"),
        ],
    )
    def test_a_key_has_one_form_for_each_kind_of_caller(
        self, scope: str | None, task_type: TaskType, component: str, key: str
    ) -> None:
        assert build_task_key(scope, "task456", task_type, component) == key
        assert parse_task_key(key) == TaskKeyParts(scope, "task456", task_type, component)

    @given(parts, parts)
    def test_different_parts_have_different_keys(self, one: TaskKeyParts, other: TaskKeyParts) -> None:
        assert (key_of(one) == key_of(other)) == (one == other)

    @given(parts)
    def test_the_client_task_id_is_found_in_the_key(self, found: TaskKeyParts) -> None:
        assert get_client_task_id_from_key(key_of(found)) == found.client_task_id

    def test_a_scope_called_anon_is_no_anonymous_caller(self) -> None:
        assert build_task_key("anon", "t", "tool", "c") != build_task_key(None, "t", "tool", "c")

    @pytest.mark.shows("C1")
    @pytest.mark.parametrize(
        "malformed",
        [
            "",
            ":",
            "nonsense",
            "auth",
            "anon:task456:tool",
            "anon:task456:tool:my_tool:more",
            "auth:client-a:task456:tool",
            "auth:client-a:task456:tool:my_tool:more",
            "auth::task456:tool:my_tool",
            "auth:client-a::tool:my_tool",
            "auth:client-a:task456:tool:",
            "auth:client-a:task456:job:my_tool",
            "AUTH:client-a:task456:tool:my_tool",
            "user:client-a:task456:tool:my_tool",
            "anon::tool:my_tool",
            "anon:task456::my_tool",
        ],
    )
    def test_a_malformed_key_is_refused_with_the_expected_form(self, malformed: str) -> None:
        for read in (parse_task_key, get_client_task_id_from_key, celery_job_id):
            with pytest.raises(ValueError, match=re.escape("'auth:{scope}:{task}:{type}:{component}'")):
                read(malformed)

    @pytest.mark.parametrize("key", [None, 7, 1.5, b"anon:task456:tool:my_tool", ["x" * 10_000], object()], ids=type)
    def test_a_key_that_is_no_text_is_refused_with_the_expected_form(self, key: Any) -> None:
        for read in (parse_task_key, get_client_task_id_from_key, celery_job_id):
            with pytest.raises(ValueError, match=r"malformed task key .*'auth:\{scope\}") as refusal:
                read(key)
            assert len(str(refusal.value)) < 500

    def test_a_key_by_session_is_refused_with_the_reason(self) -> None:
        with pytest.raises(ValueError, match=r"key by session.*would lose its task.*'auth:\{scope\}"):
            parse_task_key("4f1c2d:task456:tool:my_tool")

    def test_a_refusal_does_not_repeat_a_long_key(self) -> None:
        with pytest.raises(ValueError, match="expected") as refusal:
            parse_task_key("x" * 10_000)
        assert len(str(refusal.value)) < 500

    @pytest.mark.parametrize(
        ("scope", "task_id", "task_type", "component", "reason"),
        [
            ("", "t", "tool", "c", "scope"),
            ("s", "", "tool", "c", "task id"),
            ("s", "t", "tool", "", "component"),
            ("s", "t", "job", "c", "'job'"),
        ],
    )
    def test_an_empty_or_unknown_part_is_refused(
        self, scope: str, task_id: str, task_type: TaskType, component: str, reason: str
    ) -> None:
        with pytest.raises(ValueError, match=reason):
            build_task_key(scope, task_id, task_type, component)


class TestCeleryId:
    @pytest.mark.shows("C2")
    @given(own_parts, legs)
    @example(TaskKeyParts("s" * 500, "i" * 64, "resource", "c" * 500), 9999)
    @example(TaskKeyParts(None, "i" * 64, "resource", "🙂" * 500), 9999)
    def test_every_leg_fits_every_backend(self, found: TaskKeyParts, leg: int) -> None:
        assert len(celery_job_id(key_of(found), leg).encode()) <= MAX_JOB_ID_BYTES

    @pytest.mark.shows("C2")
    @given(own_parts, legs)
    def test_a_celery_id_has_only_characters_that_urls_and_brokers_accept(self, found: TaskKeyParts, leg: int) -> None:
        assert re.fullmatch(r"[A-Za-z0-9_.~:!-]+", celery_job_id(key_of(found), leg))

    @given(own_parts, legs)
    def test_the_key_is_read_from_a_celery_id_unless_it_was_shortened(self, found: TaskKeyParts, leg: int) -> None:
        key = key_of(found)
        job_id = celery_job_id(key, leg)
        assert task_key_from_job_id(job_id) == (None if is_shortened(job_id) else key)

    @given(own_parts, own_parts, legs, legs)
    def test_different_jobs_have_different_ids(
        self, one: TaskKeyParts, other: TaskKeyParts, leg: int, other_leg: int
    ) -> None:
        same = celery_job_id(key_of(one), leg) == celery_job_id(key_of(other), other_leg)
        assert same == ((one, leg) == (other, other_leg))

    @pytest.mark.shows("C2")
    def test_the_scope_is_shortened_first(self) -> None:
        job_id = celery_job_id(build_task_key("s" * 150, "i" * 43, "tool", "build_report"))
        tag, scope, *rest = job_id.split(":")
        assert (tag, rest) == ("auth", ["i" * 43, "tool", "build_report"])
        assert scope.startswith("~~")
        assert is_shortened(job_id)

    @given(own_parts, legs)
    def test_the_celery_id_of_an_anonymous_task_may_hide_the_task_id(self, found: TaskKeyParts, leg: int) -> None:
        key = key_of(found)
        job_id = celery_job_id(key, leg, hidden=Hidden.TASK_ID)
        if found.task_scope is not None:
            assert job_id == celery_job_id(key, leg)
            return
        assert len(job_id) <= MAX_JOB_ID_BYTES
        assert re.fullmatch(r"[A-Za-z0-9_.~:!-]+", job_id)
        assert is_shortened(job_id)
        assert task_key_from_job_id(job_id) is None
        assert re.fullmatch(r"[A-Za-z0-9_-]{0,8}~~[0-9a-f]{32}", job_id.split(":")[1])

    def test_a_hidden_id_can_be_matched_with_a_log_line(self) -> None:
        key = build_task_key(None, "q3Xw81ab" + "i" * 35, "tool", "x")
        assert re.fullmatch(r"anon:q3Xw81ab~~[0-9a-f]{32}:tool:x!2", celery_job_id(key, 2, hidden=Hidden.TASK_ID))

    def test_a_resources_uri_may_be_hidden(self) -> None:
        key = build_task_key("app", "task456", "resource", "reports://private/7")
        job_id = celery_job_id(key, hidden=Hidden.COMPONENT)
        assert re.fullmatch(r"auth:app:task456:resource:~~[0-9a-f]{32}", job_id)
        assert is_shortened(job_id)
        assert later_job_id(job_id, 2) == celery_job_id(key, 2, hidden=Hidden.COMPONENT)

    @pytest.mark.shows("C2")
    def test_the_component_is_shortened_second_and_the_task_id_never(self) -> None:
        job_id = celery_job_id(build_task_key("s" * 150, "i" * 64, "tool", "c" * 150))
        _tag, scope, task_id, task_type, component = job_id.split(":")
        assert (task_id, task_type) == ("i" * 64, "tool")
        assert scope.startswith("~~")
        assert component.startswith("~~")

    def test_a_short_scope_stays_when_only_the_component_is_long(self) -> None:
        assert celery_job_id(build_task_key("me", "i", "tool", "c" * 200)).startswith("auth:me:i:tool:~~")

    def test_for_an_anonymous_caller_only_the_component_is_shortened(self) -> None:
        assert celery_job_id(build_task_key(None, "i", "tool", "c" * 200)).startswith("anon:i:tool:~~")

    def test_a_shortened_id_is_the_same_in_every_version(self) -> None:
        # Published jobs outlive an upgrade.
        job_id = celery_job_id(build_task_key("s" * 150, "i" * 43, "tool", "c"))
        assert job_id == "auth:~~464d1485befd1dd97dd65972f9974bff:" + "i" * 43 + ":tool:c"

    def test_shortened_ids_differ_in_the_part_that_was_shortened(self) -> None:
        ids = {celery_job_id(build_task_key("s" * 150 + end, "i", "tool", "c")) for end in ("1", "2")}
        ids |= {celery_job_id(build_task_key(None, "i", "tool", "c" * 200 + end)) for end in ("1", "2")}
        assert len(ids) == 4

    def test_all_legs_of_a_task_share_one_stem(self) -> None:
        for length in range(110, 140):  # on both sides of the length at which a component gives way
            key = build_task_key(None, "i" * 16, "tool", "c" * length)
            ids = [celery_job_id(key, leg) for leg in (1, 2, 9999)]
            assert {job_id.partition("!")[0] for job_id in ids} == {celery_job_id(key)}
            assert max(len(job_id) for job_id in ids) <= MAX_JOB_ID_BYTES

    def test_a_task_id_that_alone_is_too_long_is_refused(self) -> None:
        with pytest.raises(ValueError, match="155 bytes"):
            celery_job_id(build_task_key(None, "i" * 150, "tool", "c"))

    @pytest.mark.parametrize("leg", [0, -1, 10_000])
    def test_a_leg_out_of_range_is_refused(self, leg: int) -> None:
        with pytest.raises(ValueError, match="1…9999"):
            celery_job_id("anon:i:tool:c", leg)

    @pytest.mark.parametrize(
        "foreign",
        [
            "",
            "4c4b0ba4-0d8a-4a2a-8e56-0c6e3bd1c2f5",
            "session:task456:tool:my_tool",
            "anon:task456:tool",
            "anon:task456:tool:my_tool!",
            "anon:task456:tool:my_tool!two",
            "!2",
        ],
    )
    def test_ids_of_other_jobs_are_not_taken_for_ours(self, foreign: str) -> None:
        assert task_key_from_job_id(foreign) is None


class TestWireIds:
    @pytest.mark.parametrize("good", ["a", "A-z_0", "x" * 64])
    def test_an_id_of_our_alphabet_may_be_looked_up(self, good: str) -> None:
        assert is_wire_task_id(good)

    @pytest.mark.parametrize(
        "bad", ["", "x" * 65, "x" * 10_240, "a b", "a:b", "a\n", "\0", "ü", "../..", "*", "a%20", "a~b", "a!2", "٣"]
    )
    def test_an_id_of_another_form_is_not_looked_up(self, bad: str) -> None:
        assert not is_wire_task_id(bad)


class TestRedisKeys:
    def test_redis_keys_begin_with_prefix_and_namespace(self) -> None:
        keys = RedisKeys("mcp_celery", "reports")
        assert keys.record("client-a", "ID") == "mcp_celery:reports:task:auth:client-a:ID"
        assert keys.record(None, "ID") == "mcp_celery:reports:task:anon:ID"
        assert keys.snapshot(None, "ID") == "mcp_celery:reports:task:anon:ID:snapshot"
        assert keys.channel(None, "ID") == "mcp_celery:reports:task:anon:ID:events"
        assert keys.questions(None, "ID") == "mcp_celery:reports:task:anon:ID:questions"
        assert keys.answers(None, "ID") == "mcp_celery:reports:task:anon:ID:answers"
        assert keys.job_alias("JOB") == keys.job_alias("JOB!2") == "mcp_celery:reports:job:JOB"

    @given(st.none() | texts, st.none() | texts, own_ids, own_ids)
    def test_no_two_tasks_share_a_key(self, scope: str | None, other: str | None, one_id: str, other_id: str) -> None:
        keys = RedisKeys("p", "n")
        one = {keys.record(scope, one_id), keys.snapshot(scope, one_id), keys.channel(scope, one_id)}
        two = {keys.record(other, other_id), keys.snapshot(other, other_id), keys.channel(other, other_id)}
        assert len(one) == 3
        assert bool(one & two) == ((scope, one_id) == (other, other_id))

    def test_the_prefix_defaults_to_the_package(self) -> None:
        assert task_redis_prefix(None) == "mcp_celery:task:anon"
        assert task_redis_prefix("a:b") == "mcp_celery:task:auth:a%3Ab"


class TestNames:
    def test_a_job_is_named_by_namespace_type_and_component(self) -> None:
        assert job_name("reports", "resource", "file://data.txt") == "mcp.reports.resource.file://data.txt"

    def test_a_namespace_has_a_queue(self) -> None:
        assert default_queue_name("reports") == "mcp.reports"

    @pytest.mark.parametrize(
        ("name", "expected"), [("reports", "reports"), ("Sales  Reports (EU)", "sales-reports-eu"), ("-a_b-", "a-b")]
    )
    def test_a_servers_name_gives_its_namespace(self, name: str, expected: str) -> None:
        assert slug(name) == expected

    @pytest.mark.parametrize("name", ["", "---", "任务"])
    def test_a_name_without_usable_characters_asks_for_the_setting(self, name: str) -> None:
        with pytest.raises(ValueError, match="MCP_CELERY_NAMESPACE"):
            slug(name)
