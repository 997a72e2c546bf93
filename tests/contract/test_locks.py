"""The ports that tests reserve: nobody else's, and free."""

import socket
from contextlib import ExitStack

import pytest

from tests.support import locks
from tests.support.locks import reserved_port


def only(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PORTS", range(port, port + 1))


def test_a_reserved_port_is_given_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with reserved_port() as port:
        only(port, monkeypatch)
        with ExitStack() as stack, pytest.raises(RuntimeError, match="no port"):
            stack.enter_context(reserved_port())


def test_a_port_that_is_in_use_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        only(server.getsockname()[1], monkeypatch)
        with ExitStack() as stack, pytest.raises(RuntimeError, match="no port"):
            stack.enter_context(reserved_port())


def test_the_kernel_gives_a_reserved_port_to_no_connection() -> None:
    if not locks.EPHEMERAL_RANGE.exists():
        pytest.skip("the system does not tell its range")
    lowest, highest = map(int, locks.EPHEMERAL_RANGE.read_text().split())
    with reserved_port() as port:
        assert not lowest <= port <= highest
