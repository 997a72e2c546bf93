"""Large results in a client made with FastMCP 3 or 4; prints what arrived as one JSON object.

Its arguments: a JSON object of cases, each with the arguments of `ask`, and the server.
"""

# Runs in a venv of its own. pyright leaves it out: it is for another FastMCP than the one that is installed here.

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport

with contextlib.suppress(ImportError):
    # Once it is imported, FastMCP 4 declares the extension, and its `call_tool` follows a call that becomes a task.
    import fastmcp_tasks as fastmcp_tasks


async def call(client: Client, name: str, arguments: dict[str, Any], options: dict[str, Any]) -> Any:
    result = await client.call_tool(name, arguments, **options)
    return result if hasattr(result, "content") else await result  # FastMCP 3 gives a task


async def size_of(calling: Any) -> list[int] | str:
    try:
        result = await calling
    except Exception as error:  # noqa: BLE001 - whatever the client reports
        return f"{type(error).__name__}: {error}"
    return [len(result.content[0].text), len(result.structured_content["result"])]


async def ask(
    target: list[str],
    *,
    sizes: list[int],
    progress: bool = False,
    client: dict[str, Any] | None = None,
    transport: dict[str, Any] | None = None,
    calls: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Call `large` for each size.

    Args:
        target: The server.
        sizes: Of results, in bytes.
        progress: The tool reports progress before it ends.
        client: Options of `Client`.
        transport: Options of its transport.
        calls: Options of `call_tool`.

    Returns:
        For each size the lengths of what arrived, or the client's error.
    """
    kind, server = StdioTransport, {"command": target[0], "args": target[1:], "env": dict(os.environ)}
    if target[0].startswith("http"):
        kind, server = StreamableHttpTransport, {"url": target[0]}
    seen: dict[str, Any] = {}
    async with Client(kind(**server, **(transport or {})), **(client or {})) as connected:
        seen["revision"] = getattr(connected, "protocol_version", None) or connected.initialize_result.protocolVersion
        where = await call(connected, "whereabouts", {}, calls or {})
        seen["as a task"] = where.structured_content["job"] is not None
        for size in sizes:
            arguments = {"result_bytes": size, "progress": progress}
            seen[str(size)] = await size_of(call(connected, "large", arguments, calls or {}))
    return seen


async def main(cases: dict[str, dict[str, Any]], target: list[str]) -> None:
    seen = {name: await ask(target, **case) for name, case in cases.items()}
    print(json.dumps(seen))  # noqa: T201 - its result


asyncio.run(main(json.loads(sys.argv[1]), sys.argv[2:]))
