"""How large a result clients of other makers take. The table in docs/protocol.md, "Sizes and values", has their limits.

A size is that of a result's JSON in bytes; half of it is the text, and half the same text as structured content.
"""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from tests.peers.conftest import Run

MB: Final = 1_000_000
EVENT_LIMIT: Final = 1024 * 1024
LARGE_EVENT: Final = f"SSE stream failed: Server-sent event exceeded the {EVENT_LIMIT} byte limit."
BUFFER_LIMIT: Final = 10 * 1024 * 1024
TYPESCRIPT: Final = "@modelcontextprotocol/sdk@1.32.2"

over_http = pytest.mark.parametrize("target", ["http"], indirect=True)
over_stdio = pytest.mark.parametrize("target", ["stdio"], indirect=True)

pytestmark = pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([300_000, 1 * MB, 1_100_000, 5 * MB], id="5MB"),
        pytest.param([20 * MB], id="20MB", marks=pytest.mark.long),
    ],
)


def arrive(sizes: list[int], *, up_to: int | None = None, beyond: str = "") -> dict[str, list[int] | str]:
    """What a client has of results: the lengths of text and structured content, or its error above its limit."""
    return {str(size): [size // 2, size // 2] if up_to is None or size < up_to else beyond for size in sizes}


def test_the_sdk_1_30_takes_results_of_every_size(run: Run, sizes: list[int]) -> None:
    assert run("mcp==1.30.0", "large_mcp_1_30.py", json.dumps(sizes)) == {"revision": "2025-11-25", **arrive(sizes)}


@pytest.mark.long  # its transports are those of the SDK 1.30
def test_fastmcp_3_takes_results_of_every_size(run: Run, sizes: list[int]) -> None:
    tasks = {"sizes": sizes, "calls": {"task": True}}
    assert run("fastmcp==3.4.10", "large_fastmcp.py", json.dumps({"tasks": tasks})) == {
        "tasks": {"revision": "2025-11-25", "as a task": True, **arrive(sizes)}
    }


def test_fastmcp_4_takes_results_of_tasks_of_every_size(run: Run, sizes: list[int]) -> None:
    tasks = {"sizes": sizes, "progress": True}
    assert run("fastmcp[tasks]==4.1.4", "large_fastmcp.py", json.dumps({"tasks": tasks})) == {
        "tasks": {"revision": "2026-07-28", "as a task": True, **arrive(sizes)}
    }


@over_http
def test_fastmcp_4_takes_one_mebibyte_an_event_in_the_foreground(run: Run, sizes: list[int]) -> None:
    legacy: dict[str, Any] = {"sizes": sizes, "client": {"mode": "legacy"}}
    cases: dict[str, dict[str, Any]] = {
        "answered with JSON": {"sizes": sizes},
        "answered with an event": {"sizes": sizes, "progress": True},
        "earlier revision": legacy,
        "limit raised": {**legacy, "transport": {"max_sse_event_size": None}},
    }
    newer, older = ({"revision": revision, "as a task": False} for revision in ("2026-07-28", "2025-11-25"))
    limited = arrive(sizes, up_to=EVENT_LIMIT, beyond=f"MCPError: {LARGE_EVENT}")
    assert run("fastmcp==4.2.3", "large_fastmcp.py", json.dumps(cases)) == {
        "answered with JSON": newer | arrive(sizes),
        "answered with an event": newer | limited,
        "earlier revision": older | limited,
        "limit raised": older | arrive(sizes),
    }


@pytest.mark.anyio
async def test_the_sdk_2_takes_one_mebibyte_an_event(url: str, sizes: list[int]) -> None:
    async def texts(transport: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        async with Client(transport, mode="legacy") as client:
            for size in sizes:
                try:
                    result: Any = await client.call_tool("large", {"result_bytes": size})
                    seen[str(size)] = [len(result.content[0].text), len(result.structured_content["result"])]
                except MCPError as error:
                    seen[str(size)] = f"{error.code} {error.message}"
        return seen

    assert await texts(streamable_http_client(url)) == arrive(sizes, up_to=EVENT_LIMIT, beyond=f"-32000 {LARGE_EVENT}")
    assert await texts(streamable_http_client(url, max_sse_event_size=None)) == arrive(sizes)


@over_http
def test_the_typescript_sdk_takes_results_of_every_size_over_http(run: Run, sizes: list[int]) -> None:
    cases = {"sizes": sizes}
    assert run(TYPESCRIPT, "large_typescript.cjs", json.dumps(cases)) == {"problems": [], **arrive(sizes)}


@over_stdio
def test_the_typescript_sdk_takes_ten_mebibytes_over_stdio(run: Run, sizes: list[int]) -> None:
    if max(sizes) < BUFFER_LIMIT:
        sizes = [*sizes, 10 * MB, 11 * MB]
    seen = run(TYPESCRIPT, "large_typescript.cjs", json.dumps({"sizes": sizes}))
    assert f"ReadBuffer exceeded maximum size of {BUFFER_LIMIT} bytes" in seen.pop("problems")
    assert seen == arrive(sizes, up_to=BUFFER_LIMIT, beyond="McpError: MCP error -32000: Connection closed")

    raised = {"sizes": sizes[-1:], "stdio": {"maxBufferSize": 32 * 1024 * 1024}}
    assert run(TYPESCRIPT, "large_typescript.cjs", json.dumps(raised)) == {"problems": [], **arrive(sizes[-1:])}
