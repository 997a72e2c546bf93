"""Who an anonymous caller is to the limits, where no test at the boundary can look."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mcp_celery.protocol.caller import caller_of_request


def request(client: str | None = None, *, http: bool = True, session_id: str | None = None) -> Any:
    """A request of an anonymous caller."""
    connection = SimpleNamespace(has_standalone_channel=session_id is not None, session_id=session_id, state={})
    address = None if client is None else SimpleNamespace(host=client, port=1)
    return SimpleNamespace(
        session=SimpleNamespace(_connection=connection),
        protocol_version="2025-11-25",
        request=SimpleNamespace(client=address) if http else None,
    )


def test_the_server_itself_is_not_counted() -> None:
    assert caller_of_request(None).requestor is None


def test_over_stdio_the_requestor_is_the_process() -> None:
    first, second = caller_of_request(request(http=False)), caller_of_request(request(http=False))
    assert first == second
    assert first.requestor is not None
    assert not first.is_shared


def test_a_session_is_one_requestor_from_every_address() -> None:
    first, moved, other = (
        caller_of_request(request(client, session_id=session_id))
        for client, session_id in (("192.0.2.1", "one"), ("192.0.2.2", "one"), ("192.0.2.1", "two"))
    )
    assert first.requestor == moved.requestor != other.requestor
    assert not first.is_shared


def test_an_address_may_be_several_callers() -> None:
    first, second = caller_of_request(request("192.0.2.1")), caller_of_request(request("192.0.2.2"))
    assert first.requestor != second.requestor
    assert first.is_shared


def test_a_caller_without_an_address_is_not_counted() -> None:
    assert caller_of_request(request()).requestor is None
