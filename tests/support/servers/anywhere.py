"""A server whose jobs run over any broker, with any result backend."""

from __future__ import annotations

import asyncio
from pathlib import Path

from celery import Celery
from mcp.shared.exceptions import MCPError

from mcp_celery import Settings, TaskConfig, TaskServer
from tests.support.servers.cancelling import HOLD_SECONDS, RETRIED, arrive, is_open
from tests.support.servers.policy import note
from tests.support.servers.tools import append


def build(*, celery: Celery | None = None, settings: Settings | None = None) -> TaskServer:
    server = TaskServer("anywhere", task=True, celery=celery, settings=settings)

    @server.tool()
    async def add(a: int, b: int) -> int:
        return a + b

    @server.tool()
    async def letters(count: int) -> str:
        return "x" * count

    @server.tool()
    async def refuse() -> str:
        raise MCPError(-32050, "the gears are stuck", {"gear": 7})

    @server.tool()
    async def hold(gate: str) -> str:
        folder = Path(gate)
        arrive(folder)
        try:
            async with asyncio.timeout(HOLD_SECONDS):
                while not is_open(folder):  # noqa: ASYNC110 - the opener is another process
                    await asyncio.sleep(0.01)
        finally:
            append(folder / "cleaned", "up")
        return "passed"

    @server.tool()
    async def touch(path: str, line: str = "ran") -> str:
        append(Path(path), line)
        return line

    @server.tool(task=RETRIED)
    async def fails_at_first(path: str) -> str:
        if note(path, "tried") == 1:
            raise ConnectionError("not yet")
        return "at last"

    server.tool("urgent", task=TaskConfig(priority=9))(touch)
    server.tool("idle", task=TaskConfig(priority=0))(touch)
    return server


server = build()
