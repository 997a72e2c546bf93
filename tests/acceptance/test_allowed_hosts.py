"""Under which names a server answers: ``Host`` and ``Origin``, on real servers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from mcp.client import Client

from tests.support.deployment import Deployment, answering_url, deployed, process
from tests.support.raw_http import Raw

pytestmark = [pytest.mark.anyio, pytest.mark.shows("C20")]

SERVED: Final = 406
"""The status of a request that is served, and accepts no form of an answer."""


@dataclass(frozen=True)
class Site:
    """A server that listens on all addresses."""

    url: str
    log: Path

    def status(self, *headers: str, host: str | None = None, line: str | None = None) -> int | None:
        """The status of an empty request."""
        with Raw(self.url) as client:
            if line is not None:
                return client.send(f"{line}\r\n\r\n".encode()).status()
            return client.head(
                "POST", "Content-Type: application/json", "Content-Length: 0", *headers, host=host
            ).status()


@pytest.fixture(scope="module", params=["options", "settings"])
def named(request: pytest.FixtureRequest, store_url: str) -> Iterator[Site]:
    """One with a name and an origin."""
    options = ["--allowed-host", "mcp.example.com", "--allowed-origin", "https://app.example.com"]
    settings = {
        "MCP_CELERY_ALLOWED_HOSTS": "mcp.example.com",
        "MCP_CELERY_ALLOWED_ORIGINS": "https://app.example.com",
    }
    with deployed(store_url, "hosts") as place:
        yield (
            open_site(place, "server", *options)
            if request.param == "options"
            else open_site(place, "server", **settings)
        )


@pytest.fixture
def unnamed(idle_deployment: Deployment) -> Site:
    """One without, that asks for a token."""
    return open_site(idle_deployment, "guarded")


def open_site(place: Deployment, attribute: str, *options: str, **settings: str) -> Site:
    place.servers += 1
    log = place.folder / f"open-{place.servers}.log"
    spec = f"{place.spec.partition(':')[0]}:{attribute}"
    argv = [sys.executable, "-m", "mcp_celery", "serve", spec, "--host", "0.0.0.0", "--port", "0", *options]
    return Site(answering_url(log, place.stack.enter_context(process(argv, place.env(**settings), log))), log)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", SERVED),
        ("localhost:8000", SERVED),
        ("[::1]:8000", SERVED),
        ("mcp.example.com", SERVED),
        ("MCP.example.com:8443", SERVED),
        ("evil.example", 421),
        ("mcp.example.com.evil.example", 421),
        ("mcp.example.com@evil.example", 421),
        ("evil.example:mcp.example.com", 421),
        ("0.0.0.0", 421),
    ],
)
def test_only_names_that_are_known_are_answered(named: Site, host: str, status: int) -> None:
    assert named.status(host=host) == status


@pytest.mark.parametrize(
    "line",
    ["POST /mcp HTTP/1.0", "POST /mcp HTTP/1.1\r\nHost: localhost\r\nHost: evil.example"],
    ids=["no Host", "two"],
)
def test_a_request_without_one_name_is_refused(named: Site, line: str) -> None:
    assert named.status(line=line) == 421


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://app.example.com", SERVED),
        ("http://localhost:5173", SERVED),
        ("https://app.example.com:444", 403),
        ("https://mcp.example.com", 403),
        ("http://localhost.evil.example", 403),
        ("null", 403),
    ],
)
def test_only_pages_that_are_known_may_use_it(named: Site, origin: str, status: int) -> None:
    assert named.status(f"Origin: {origin}") == status


async def test_a_client_that_names_an_allowed_host_is_served(named: Site) -> None:
    async with Client(named.url) as client:
        assert (await client.list_tools()).tools


def test_the_log_warns_of_a_server_without_authentication(named: Site) -> None:
    assert "without authentication" in named.log.read_text()
    assert "name that clients use" not in named.log.read_text()


def test_the_log_warns_of_a_server_without_a_name_and_says_how_to_allow_one(unnamed: Site) -> None:
    assert "without authentication" not in unnamed.log.read_text()
    assert "name that clients use with --allowed-host" in unnamed.log.read_text()
    assert unnamed.status(host="evil.example") == 421
    assert "the Host 'evil.example'; --allowed-host or MCP_CELERY_ALLOWED_HOSTS" in unnamed.log.read_text()
    assert unnamed.status("Origin: https://evil.example") == 403
    assert "the Origin 'https://evil.example'; --allowed-origin or MCP_CELERY_ALLOWED" in unnamed.log.read_text()
