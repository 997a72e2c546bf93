"""Who asks and where we are: scopes that cannot be forged, snapshots that survive JSON, sessions held weakly."""

import gc
import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.auth.middleware.auth_context import get_access_token
from starlette.datastructures import Headers

from mcp_celery.common.formats import FORMAT, NewerFormatError
from mcp_celery.context import (
    CallerToken,
    TaskContext,
    TaskContextSnapshot,
    get_task_context,
    get_task_issuer,
    get_task_scope,
    get_task_server,
    get_task_session,
    get_task_session_id,
    provide_token_source,
    register_task_server,
    register_task_session,
    restore_task_snapshot,
    scope_of,
)
from mcp_celery.keys import TaskKeyParts

texts = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(["|", "%", "a|b", "a%7Cb", "%7C"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=5,
)
json_objects = st.dictionaries(texts, json_values, max_size=4)
tokens = st.builds(
    CallerToken, texts, st.lists(texts), st.none() | texts, st.none() | json_objects, st.none() | st.integers()
)
snapshots = st.builds(
    TaskContextSnapshot,
    protocol_version=texts,
    request_id=st.none() | texts | st.integers(),
    client_info=st.none() | json_objects,
    client_capabilities=st.none() | json_objects,
    headers=st.none() | st.dictionaries(texts, texts),
    session_id=st.none() | texts,
    token=st.none() | tokens,
    progress_token=st.none() | texts | st.integers(),
    traceparent=st.none() | texts,
    tracestate=st.none() | texts,
    meta=st.none() | json_objects,
)


@dataclass
class Token:
    """As the SDK's, with the secret that no snapshot may hold."""

    client_id: str = "client-a"
    subject: str | None = "alice"
    scopes: list[str] = field(default_factory=lambda: ["read"])
    claims: dict[str, Any] | None = field(default_factory=lambda: {"iss": "https://issuer.example"})
    expires_at: int | None = 4_000_000_000
    resource: str | None = "https://mcp.example/mcp"
    token: str = "the-secret-itself"


ALONE = """
import sys
from mcp_celery.context import get_task_scope
assert get_task_scope() is None
assert "mcp" not in sys.modules
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
auth_context_var.set(AuthenticatedUser(AccessToken(token="t", client_id="client-a", scopes=[], subject="alice")))
print(get_task_scope())
"""
"""What a program does that imports nothing else of the package."""


class Session:
    """Anything that can be referred to weakly."""


@pytest.fixture(autouse=True)
def no_caller() -> Generator[None]:
    """Leave the process with the callers of its requests, as `mcp_celery.protocol` gives them."""
    provide_token_source(lambda: None)
    yield
    provide_token_source(get_access_token)


def context(session_id: str | None = None, namespace: str = "reports") -> TaskContext:
    parts = TaskKeyParts(None, "task456", "tool", "my_tool")
    return TaskContext(
        parts,
        "anon:task456:tool:my_tool",
        namespace,
        1,
        TaskContextSnapshot(protocol_version="2026-07-28", session_id=session_id),
    )


class TestScope:
    def test_an_anonymous_caller_has_no_scope(self) -> None:
        assert get_task_scope() is None
        assert get_task_issuer() is None

    def test_a_scope_is_client_and_subject(self) -> None:
        provide_token_source(Token)
        assert get_task_scope() == "client-a|alice"

    @pytest.mark.parametrize(
        ("subject", "claims", "scope"),
        [
            (None, {"sub": "bob"}, "client-a|bob"),
            ("", {"sub": "bob"}, "client-a|bob"),
            ("alice", {"sub": "bob"}, "client-a|alice"),
            (None, {"sub": ""}, "client-a"),
            (None, {"sub": 7}, "client-a"),
            (None, {}, "client-a"),
        ],
    )
    def test_a_subject_may_stand_in_the_claims_alone(
        self, subject: str | None, claims: dict[str, Any], scope: str
    ) -> None:
        provide_token_source(lambda: Token(subject=subject, claims=claims))
        assert get_task_scope() == scope

    def test_the_scope_is_known_as_soon_as_the_module_is_imported(self) -> None:
        ran = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
        assert ran.stdout == "client-a|alice\n"

    def test_without_a_subject_the_scope_is_the_client(self) -> None:
        provide_token_source(lambda: Token(subject=None))
        assert get_task_scope() == "client-a"

    @given(texts, st.none() | texts, texts, st.none() | texts)
    def test_no_two_callers_share_a_scope(
        self, client: str, subject: str | None, other_client: str, other_subject: str | None
    ) -> None:
        same = scope_of(client, subject) == scope_of(other_client, other_subject)
        assert same == ((client, subject) == (other_client, other_subject))

    @pytest.mark.parametrize(
        ("claims", "issuer"), [({"iss": "https://a"}, "https://a"), ({}, None), (None, None), ({"iss": 7}, "7")]
    )
    def test_the_issuer_is_the_one_of_the_token(self, claims: dict[str, Any] | None, issuer: str | None) -> None:
        provide_token_source(lambda: Token(claims=claims))
        assert get_task_issuer() == issuer


class TestSnapshot:
    @given(snapshots)
    def test_a_snapshot_survives_json(self, snapshot: TaskContextSnapshot) -> None:
        assert TaskContextSnapshot.from_json(snapshot.to_json()) == snapshot
        assert TaskContextSnapshot.from_json(snapshot.to_json().encode()) == snapshot

    def test_a_snapshot_is_captured_without_arguments(self) -> None:
        provide_token_source(Token)
        captured = TaskContextSnapshot.capture()
        assert captured.token is not None
        assert captured.token.client_id == "client-a"
        assert captured == TaskContextSnapshot(protocol_version="2025-11-25", token=captured.token)

    def test_a_snapshot_of_a_job_has_the_revision_of_the_jobs_request(self) -> None:
        with restore_task_snapshot(context()):
            assert TaskContextSnapshot.capture() == TaskContextSnapshot(protocol_version="2026-07-28")
            assert TaskContextSnapshot.capture(protocol_version="x").protocol_version == "x"

    def test_fields_of_a_later_version_are_ignored(self) -> None:
        text = '{"protocol_version": "2026-07-28", "later": 1, "token": {"client_id": "a", "scopes": [], "later": 2}}'
        assert TaskContextSnapshot.from_json(text) == TaskContextSnapshot(
            protocol_version="2026-07-28", token=CallerToken("a"), format=1
        )

    def test_a_later_format_is_refused_with_both_numbers(self) -> None:
        text = json.dumps({"protocol_version": "2026-07-28", "format": FORMAT + 1})
        with pytest.raises(NewerFormatError, match=rf"format {FORMAT + 1}; this release reads formats up to {FORMAT}"):
            TaskContextSnapshot.from_json(text)

    @pytest.mark.parametrize(
        "text",
        ["", b"\xff", "{", "null", "3", "[]", "{}", '"protocol_version"', '{"protocol_version": "x", "token": "t"}',
         '{"protocol_version": "x", "token": {}}'],
    )  # fmt: skip
    def test_a_value_that_is_no_snapshot_is_refused(self, text: str | bytes) -> None:
        with pytest.raises(ValueError, match="not a task context snapshot"):
            TaskContextSnapshot.from_json(text)

    @pytest.mark.parametrize("name", ["x-tenant", "X-Tenant", "X-TENANT"])
    def test_only_headers_of_the_allowlist_are_kept_however_they_are_written(self, name: str) -> None:
        snapshot = TaskContextSnapshot.capture(
            protocol_version="2026-07-28",
            headers={name: "acme", "Authorization": "Bearer secret", "Cookie": "secret"},
            header_names=frozenset({"x-tenant"}),
        )
        assert snapshot.headers == {"x-tenant": "acme"}

    def test_no_header_is_kept_by_default(self) -> None:
        assert TaskContextSnapshot.capture(protocol_version="x", headers={"X-Tenant": "acme"}).headers == {}
        assert TaskContextSnapshot.capture(protocol_version="x").headers is None

    def test_a_snapshot_names_the_caller_without_the_token_itself(self) -> None:
        provide_token_source(Token)
        snapshot = TaskContextSnapshot.capture(protocol_version="2026-07-28")
        assert snapshot.token == CallerToken(
            "client-a",
            ["read"],
            "alice",
            {"iss": "https://issuer.example"},
            4_000_000_000,
            "https://mcp.example/mcp",
            "the-secret-itself",
        )
        assert "the-secret-itself" not in snapshot.to_json()

    def test_the_token_itself_is_written_only_where_it_is_asked_for(self) -> None:
        provide_token_source(Token)
        snapshot = TaskContextSnapshot.capture(protocol_version="2026-07-28")
        assert TaskContextSnapshot.from_json(snapshot.to_json(with_token=True)) == snapshot

    def test_the_repr_of_a_snapshot_hides_its_contents(self) -> None:
        provide_token_source(lambda: Token(claims={"email": "planted"}))
        snapshot = TaskContextSnapshot.capture(
            protocol_version="2026-07-28",
            params={"arguments": "planted"},
            headers={"cookie": "planted"},
            header_names=frozenset({"cookie"}),
            session_id="planted",
            meta={"key": "planted"},
        )
        assert "planted" not in f"{snapshot!r} {snapshot.token!r}"
        assert "the-secret-itself" not in f"{snapshot!r} {snapshot.token!r}"

    def test_claims_that_are_no_json_become_text(self) -> None:
        provide_token_source(lambda: Token(claims={"at": date(2026, 7, 28)}))
        written = TaskContextSnapshot.capture(protocol_version="2026-07-28").to_json()
        token = TaskContextSnapshot.from_json(written).token
        assert token is not None
        assert token.claims == {"at": "2026-07-28"}

    def test_values_of_a_header_that_was_sent_twice_are_joined(self) -> None:
        headers = Headers(raw=[(b"x-via", b"a"), (b"x-other", b"no"), (b"X-Via", b"b")])
        snapshot = TaskContextSnapshot.capture(
            protocol_version="2026-07-28", headers=headers, header_names=frozenset({"x-via"})
        )
        assert snapshot.headers == {"x-via": "a, b"}

    def test_an_anonymous_caller_leaves_no_token(self) -> None:
        assert TaskContextSnapshot.capture(protocol_version="2026-07-28").token is None

    def test_a_snapshot_is_saved_with_the_tasks_lifetime(self) -> None:
        written: list[tuple[str, str, int]] = []

        class Pipeline:
            def set(self, name: str, value: str, *, px: int) -> None:
                written.append((name, value, px))

        snapshot = TaskContextSnapshot(protocol_version="2026-07-28")
        snapshot.save(Pipeline(), "the:key", 1500)
        assert written == [("the:key", snapshot.to_json(), 1500)]

    @pytest.mark.parametrize(("expires_at", "expired"), [(None, False), (0, False), (1, True), (4_000_000_000, False)])
    def test_a_token_reports_whether_it_has_expired(self, expires_at: int | None, expired: bool) -> None:
        assert CallerToken("a", expires_at=expires_at).expired is expired


class TestCurrentTask:
    def test_there_is_no_task_context_outside_a_job(self) -> None:
        assert get_task_context() is None
        assert get_task_session_id() is None
        assert get_task_server() is None

    def test_a_job_sees_its_own_task_context(self) -> None:
        own = context("session-1")
        with restore_task_snapshot(own) as snapshot:
            assert snapshot is own.snapshot
            assert get_task_context() is own
            assert get_task_session_id() == "session-1"
        assert get_task_context() is None

    @pytest.mark.parametrize("scope", [None, "client-a|alice"])
    def test_a_job_can_read_its_tasks_id_and_scope(self, scope: str | None) -> None:
        with restore_task_snapshot(replace(context(), key=TaskKeyParts(scope, "task456", "tool", "my_tool"))):
            here = get_task_context()
        assert here is not None
        assert (here.task_id, here.task_scope) == ("task456", scope)

    def test_the_scope_of_a_job_is_its_tasks_whatever_token_is_valid(self) -> None:
        provide_token_source(Token)
        own = replace(context(), key=TaskKeyParts("client-b|bob", "task456", "tool", "my_tool"))
        with restore_task_snapshot(own):
            assert get_task_scope() == "client-b|bob"
        with restore_task_snapshot(context()):
            assert get_task_scope() is None
        assert get_task_scope() == "client-a|alice"

    def test_an_inner_job_hides_the_outer_one_until_it_ends_even_by_an_error(self) -> None:
        outer = context("outer")
        with restore_task_snapshot(outer):
            with suppress(RuntimeError), restore_task_snapshot(context("inner")):
                assert get_task_session_id() == "inner"
                raise RuntimeError
            assert get_task_context() is outer


class TestRegistries:
    def test_a_session_is_found_while_its_connection_lives(self) -> None:
        session = Session()
        register_task_session("session-1", session)
        assert get_task_session("session-1") is session
        del session
        gc.collect()
        assert get_task_session("session-1") is None

    def test_a_new_session_takes_the_place_of_an_old_one(self) -> None:
        first, second = Session(), Session()
        register_task_session("session-1", first)
        register_task_session("session-1", second)
        del first
        gc.collect()
        assert get_task_session("session-1") is second

    def test_a_server_is_found_by_namespace_and_by_the_running_task(self) -> None:
        server = Session()
        register_task_server("reports", server)
        assert get_task_server("reports") is server
        assert get_task_server("other") is None
        with restore_task_snapshot(context(namespace="reports")):
            assert get_task_server() is server
        with restore_task_snapshot(replace(context(), namespace="other")):
            assert get_task_server() is None
        del server
        gc.collect()
        assert get_task_server("reports") is None
