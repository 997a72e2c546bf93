"""Tasks that several clients submit at a time, and the wait until a system has done with them."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from bench.client import Client
from bench.run import connected
from bench.systems import System

CLIENTS: Final = 16
_LOOK_SECONDS: Final = 0.5
_IDLE_SHARE: Final = 0.15
"""Of a processor, all processes of a system together. FastMCP's look for work costs some hundredths."""
_LONGEST_SECONDS: Final = 120.0


async def submitted(
    system: System, count: int, tool: str = "noop", *, clients: int = CLIENTS, **arguments: Any
) -> list[str]:
    """Submit tasks without a pause.

    Args:
        system: The system.
        count: How many tasks.
        tool: Whose.
        clients: How many connections share them.
        arguments: The tool's.

    Returns:
        Their ids, in about the order of their creation.
    """
    async with connected(system.url, clients) as connections, asyncio.TaskGroup() as group:
        shares = [
            group.create_task(_submit(client, len(range(index, count, clients)), tool, arguments))
            for index, client in enumerate(connections)
        ]
    longest = max(len(share.result()) for share in shares)
    return [share.result()[at] for at in range(longest) for share in shares if at < len(share.result())]


async def _submit(client: Client, count: int, tool: str, arguments: dict[str, Any]) -> list[str]:
    return [(await client.submit(tool, **arguments))[0] for _ in range(count)]


async def completed(system: System, count: int) -> None:
    """Submit no-op tasks without a pause, and wait until the last ones have completed."""
    task_ids = await submitted(system, count)
    async with Client(system.url) as client:
        for task_id in task_ids[-CLIENTS:]:
            await client.finish(task_id, 0.2)


async def until_idle(system: System) -> None:
    """Wait until a system's processes have nothing to do. It is asked nothing meanwhile.

    Raises:
        TimeoutError: It went on for two minutes.
    """
    deadline = time.monotonic() + _LONGEST_SECONDS
    while time.monotonic() < deadline:
        before = sum(system.cpu_seconds().values())
        await asyncio.sleep(_LOOK_SECONDS)
        if sum(system.cpu_seconds().values()) - before < _IDLE_SHARE * _LOOK_SECONDS:
            return
    raise TimeoutError(f"{system.name} was busy for {_LONGEST_SECONDS:g} s without a request")
