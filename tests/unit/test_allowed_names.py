"""The check of ``Host`` holds wherever the app is mounted, and whatever prefix a proxy removes."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from mcp_celery.common.allowed_hosts import AllowedNames
from mcp_celery.web.names import AllowedNamesOnly

pytestmark = pytest.mark.anyio


async def status(path: str, root_path: str, host: str) -> int:
    """The status of a request; 200 of one that reaches the app."""
    sent: list[Any] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "root_path": root_path, "headers": [(b"host", host.encode())]}
    names = AllowedNames.listening_on("0.0.0.0")
    await AllowedNamesOnly(app, names=names, path="/mcp")(scope, receive, send)
    return sent[0]["status"]


@pytest.mark.parametrize(
    ("path", "root_path"),
    [("/mcp", ""), ("/mcp/", ""), ("/tools/mcp", "/tools"), ("/a/b/mcp/", "/a/b"), ("/mcp/mcp", "/mcp")],
)
async def test_requests_to_the_endpoint_are_checked(path: str, root_path: str) -> None:
    assert await status(path, root_path, "evil.example") == 421
    assert await status(path, root_path, "localhost:8000") == 200


@pytest.mark.parametrize(
    ("path", "root_path"), [("/health", ""), ("/tools/health", "/tools"), ("/mcp", "/mcp"), ("/tools/mcp", "")]
)
async def test_requests_to_other_paths_are_not_checked(path: str, root_path: str) -> None:
    assert await status(path, root_path, "evil.example") == 200
