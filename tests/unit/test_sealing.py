"""How snapshots are written: sealed so that nobody else reads them, or as they are and without the access token."""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.request_state import AESGCMRequestStateCodec

from mcp_celery.context import CallerToken, TaskContextSnapshot
from mcp_celery.errors import SnapshotUnreadableError
from mcp_celery.sealing import Purpose, SealError, SnapshotCodec, is_sealed
from mcp_celery.server.keyring import signer_with, snapshots_with

OLD, NEW = "an old key of more than 32 bytes, still known", "a new key of more than 32 bytes, lately made"
PLACE = ["mcp_celery:reports:task:auth:client-a%7Calice:task456:snapshot", "build_report"]
TOKEN = CallerToken("client-a", ["read"], "alice", {"iss": "https://issuer.example"}, token="the-secret-itself")
SNAPSHOT = TaskContextSnapshot(
    protocol_version="2026-07-28",
    params={"name": "build_report", "arguments": {"note": "planted"}},
    headers={"authorization": "Bearer the-secret-itself"},
    token=TOKEN,
)
WITHOUT_TOKEN = replace(SNAPSHOT, token=replace(TOKEN, token=""))
PLAIN = SnapshotCodec()


def sealing(*keys: str) -> SnapshotCodec:
    return snapshots_with(keys)


def refusal(codec: SnapshotCodec, stored: bytes, place: Sequence[str] = PLACE) -> str:
    with pytest.raises(SnapshotUnreadableError) as error:
        codec.read(stored, place)
    assert str(error.value) == "The request's context cannot be restored, so the job cannot run"
    assert error.value.__cause__ is None
    return error.value.reason


def test_a_sealed_snapshot_is_read_whole_with_the_token() -> None:
    assert sealing(NEW).read(sealing(NEW).write(SNAPSHOT, PLACE).encode(), PLACE) == SNAPSHOT


def test_without_keys_a_snapshot_is_read_without_the_token() -> None:
    written = PLAIN.write(SNAPSHOT, PLACE)
    assert PLAIN.read(written.encode(), PLACE) == WITHOUT_TOKEN


def test_a_sealed_snapshot_shows_no_plain_text() -> None:
    written = sealing(NEW).write(SNAPSHOT, PLACE)
    shown = ["planted", "the-secret-itself", "build_report", "client-a", "2026-07-28", "authorization"]
    assert not [text for text in shown if text in written]
    assert sealing(NEW).write(SNAPSHOT, PLACE) != written


def test_keys_are_changed_without_losing_a_task() -> None:
    by_old, by_both = sealing(OLD).write(SNAPSHOT, PLACE).encode(), sealing(NEW, OLD).write(SNAPSHOT, PLACE).encode()
    assert sealing(OLD, NEW).read(by_both, PLACE) == SNAPSHOT
    assert sealing(NEW, OLD).read(by_old, PLACE) == SNAPSHOT
    assert sealing(NEW).read(by_both, PLACE) == SNAPSHOT


def test_a_key_that_is_not_known_opens_nothing() -> None:
    assert "unknown key" in refusal(sealing(NEW), sealing(OLD).write(SNAPSHOT, PLACE).encode())


def test_a_sealed_snapshot_opens_only_at_its_own_place() -> None:
    written = sealing(NEW).write(SNAPSHOT, PLACE).encode()
    for another in ([PLACE[0].replace("alice", "bob"), PLACE[1]], [PLACE[0], "other_tool"], PLACE[:1], [*PLACE, ""]):
        assert refusal(sealing(NEW), written, another) == "it was sealed for another place"


def test_other_sealed_values_are_no_snapshot() -> None:
    foreign = AESGCMRequestStateCodec([NEW]).seal(f"{PLACE[0]}\n{SNAPSHOT.to_json()}".encode())
    assert "unknown key" in refusal(sealing(NEW), foreign.encode())


def test_a_snapshot_that_0_1_0_sealed_is_read_in_its_place() -> None:
    text = "\n".join(("mcp-celery/snapshot/1", PLACE[0], SNAPSHOT.to_json(with_token=True)))
    sealed = AESGCMRequestStateCodec([OLD]).seal(text.encode()).encode()
    assert sealing(NEW, OLD).read(sealed, PLACE) == SNAPSHOT
    assert "unknown key" in refusal(sealing(NEW, OLD), sealed, ["another", PLACE[1]])


@pytest.mark.parametrize("purpose", get_args(Purpose))
def test_a_text_opens_for_its_purpose_only(purpose: Purpose) -> None:
    seals = sealing(NEW).sealing
    sealed = seals.seal(purpose, [1, "a"], "[]")
    assert seals.open(purpose, [1, "a"], sealed) == "[]"
    for other in get_args(Purpose):
        if other != purpose:
            with pytest.raises(SealError, match="unknown key"):
                seals.open(other, [1, "a"], sealed)
    for place in (["a", 1], ["1\na"], ["1", "a", ""], [1], []):
        with pytest.raises(SealError, match="another place"):
            seals.open(purpose, place, sealed)


def test_a_place_with_line_breaks_is_no_other_place() -> None:
    seals = sealing(NEW).sealing
    places = [["a\nb", "c"], ["a", "b\nc"], ["a", "b", "c"], ["a\nb\nc"], ['["answer", "a\\nb", "c"]']]
    for place in places:
        sealed = seals.seal("answer", place, "\n[]")
        assert seals.open("answer", place, sealed) == "\n[]"
        for other in places:
            if other != place:
                with pytest.raises(SealError, match="another place"):
                    seals.open("answer", other, sealed)


def test_signed_values_are_those_that_were_signed() -> None:
    seals = sealing(NEW).sealing
    many = [["a\nb", "c"], ["a", "b\nc"], ["a", "b", "c"], ["a", "b"], ["a", "b", "c", ""], ["x" * 9_000]]
    for values in many:
        signature = seals.sign(values)
        for _ in range(2):  # what is known is no other
            seals.require_signed(values, signature)
            for other in many:
                if other != values:
                    with pytest.raises(SealError, match="its fixed fields were changed"):
                        seals.require_signed(other, signature)
            for forged in ("", "é", signature[:-1], signature.upper()):
                with pytest.raises(SealError):
                    seals.require_signed(values, forged)
    with pytest.raises(SealError, match="it is not signed"):
        seals.require_signed(many[0], None)
    PLAIN.sealing.require_signed(many[0], None)


def test_unsealed_values_are_accepted_where_the_setting_says_so() -> None:
    accepting = snapshots_with([NEW], accept_unsealed=True)
    assert accepting.sealing.open("answer", ["a"], "[]") == "[]"
    assert refusal(accepting, PLAIN.write(SNAPSHOT, PLACE).encode()).startswith("it is not sealed")
    with pytest.raises(SealError, match="it is not sealed"):
        sealing(NEW).sealing.open("answer", ["a"], "[]")
    with pytest.raises(SealError, match="MCP_CELERY_ENCRYPTION_KEYS"):
        PLAIN.sealing.open("answer", ["a"], sealing(NEW).sealing.seal("answer", ["a"], "[]"))


def test_workers_that_accept_unsealed_values_write_values_that_0_1_0_reads() -> None:
    for accept in (False, True):
        workers = snapshots_with([NEW], accept_unsealed=accept).of_workers.sealing
        sealed = {purpose for purpose in get_args(Purpose) if is_sealed(workers.seal(purpose, ["a"], "[]"))}
        assert sealed == ({"request", "state"} if accept else set(get_args(Purpose)))
        assert all(workers.open(purpose, ["a"], sealing(NEW).sealing.seal(purpose, ["a"], "[]")) for purpose in sealed)


def test_a_message_is_genuine_with_the_signature_of_its_parts_alone() -> None:
    old, new = signer_with([OLD]), signer_with([NEW, OLD])
    signature = old.sign("key", 1, 1, 0)
    assert new.is_genuine(signature, "key", 1, 1, 0)
    for parts in (("key", 2, 1, 0), ("key", 1, 1, 1), ("other", 1, 1, 0)):
        assert not new.is_genuine(signature, *parts)
    for other in (None, "", "é", 7, new.sign("key", 1, 1)):
        assert not old.is_genuine(other, "key", 1, 1, 0)
    assert not signer_with([NEW]).is_genuine(signature, "key", 1, 1, 0)


def test_a_message_carries_its_signature_as_a_header() -> None:
    signer, arguments = signer_with([NEW]), {"key": "key", "attempt": 1, "leg": 1}
    headers = signer.headers("shop", arguments, 0)
    assert signer.accepts(headers, "shop", arguments, 0)
    assert not signer.accepts(headers, "shop", arguments, 1)
    assert not signer.accepts(headers, "other", arguments, 0)
    assert not signer.accepts({}, "shop", arguments, 0)
    assert signer_with([]).headers("shop", arguments, 0) == {}


@pytest.mark.parametrize("arguments", [None, [], "text", 7, {}, {"key": "\ud800", "attempt": 1}])
def test_arguments_that_are_none_of_ours_are_not_accepted(arguments: object) -> None:
    assert not signer_with([NEW]).accepts({"mcp_celery_signature": "forged"}, "shop", arguments, 0)
    assert signer_with([]).accepts({}, "shop", arguments, 0)


def test_without_keys_or_where_the_setting_says_so_a_message_needs_no_signature() -> None:
    assert signer_with([]).sign("key", 1) is None
    assert signer_with([]).is_genuine(None, "key", 1)
    assert signer_with([NEW], accept_unsealed=True).is_genuine(None, "key", 1)
    assert not signer_with([NEW], accept_unsealed=True).is_genuine("forged", "key", 1)


def test_with_keys_an_unsealed_snapshot_is_refused() -> None:
    assert refusal(sealing(NEW), PLAIN.write(SNAPSHOT, PLACE).encode()).startswith("it is not sealed")


def test_without_keys_a_sealed_snapshot_is_refused_with_the_missing_setting() -> None:
    assert "MCP_CELERY_ENCRYPTION_KEYS" in refusal(PLAIN, sealing(NEW).write(SNAPSHOT, PLACE).encode())


@pytest.mark.parametrize("codec", [PLAIN, sealing(NEW)], ids=["plain", "sealed"])
def test_a_missing_snapshot_is_reported_as_gone(codec: SnapshotCodec) -> None:
    assert refusal(codec, b"") == "it is gone"


@pytest.mark.parametrize(
    "stored", [b"{", b"{}", b'{"protocol_version": 1, "token": {}}', b"[]", b"null", b"v1.", b"\xff"]
)
@pytest.mark.parametrize("codec", [PLAIN, sealing(NEW)], ids=["plain", "sealed"])
def test_a_text_that_is_no_snapshot_is_refused(codec: SnapshotCodec, stored: bytes) -> None:
    assert refusal(codec, stored)


@given(st.data())
def test_a_changed_sealed_snapshot_is_refused(data: st.DataObject) -> None:
    written = bytearray(sealing(NEW).write(SNAPSHOT, PLACE).encode())
    written[data.draw(st.integers(0, len(written) - 1))] ^= data.draw(st.integers(1, 127))
    assert "planted" not in refusal(sealing(NEW), bytes(written))
