"""Clients that create tasks and follow each to its end, whatever answers meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

import httpx2

from tests.support.wire import JSON, Wire

FOREGROUND: Final = "in_the_foreground"
TOOLS: Final = ("once", "once_sync", "again", FOREGROUND, "flaky", "refuse")
WEIGHTS: Final = (4, 2, 4, 2, 1, 1)
LONGEST_SECONDS: Final = 3.0
POLL_SECONDS: Final = 0.5


@dataclass
class Call:
    """One call of a tool.

    Attributes:
        number: Its argument; no two calls share one.
        tool: Its tool.
        refused: The JSON-RPC error code that its creation was answered with.
        task_id: The task that was created; None with ``refused`` None: the server died before it answered.
        end: The terminal task; of a call in the foreground its result.
        lost: ``tasks/get`` said that there is no such task.
    """

    number: int
    tool: str
    refused: int | None = None
    task_id: str | None = None
    end: JSON | None = None
    lost: bool = False


@dataclass
class Load:
    """Clients of several replicas of one server."""

    urls: Sequence[str]
    clients: int
    seed: int
    calls: list[Call] = field(default_factory=list[Call])
    unanswered: int = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Create tasks until ``stop`` is set, then wait until each has ended."""
        numbers = itertools.count(1)
        async with AsyncExitStack() as stack:
            wires = [await stack.enter_async_context(Wire(url)) for url in self.urls]
            plain = [await stack.enter_async_context(Wire(url, extension=False)) for url in self.urls]
            clients = (self._client(wires, plain, numbers, stop, client) for client in range(self.clients))
            await asyncio.gather(*clients)

    async def _client(
        self,
        wires: Sequence[Wire],
        plain: Sequence[Wire],
        numbers: itertools.count[int],
        stop: asyncio.Event,
        client: int,
    ) -> None:
        chance = random.Random(f"{self.seed}-{client}")
        following: list[asyncio.Task[None]] = []
        while not stop.is_set():
            call = Call(next(numbers), chance.choices(TOOLS, WEIGHTS)[0])
            self.calls.append(call)
            seconds = chance.uniform(0, LONGEST_SECONDS)
            if call.tool == FOREGROUND:
                following.append(asyncio.create_task(self._send(chance.choice(plain), call, seconds)))
            else:
                await self._send(chance.choice(wires), call, seconds)
            if call.task_id is not None:
                following.append(asyncio.create_task(self._follow(wires, call, chance)))
            await asyncio.sleep(chance.uniform(0, 1.0))
        await asyncio.gather(*following)

    async def _send(self, wire: Wire, call: Call, seconds: float) -> None:
        try:
            answer = await wire.call(call.tool, number=call.number, seconds=seconds)
        except (httpx2.HTTPError, ValueError):
            self.unanswered += 1
            return
        if "error" in answer.message:
            call.refused = answer.error["code"]
        elif call.tool == FOREGROUND:
            call.end = answer.result
        else:
            call.task_id = answer.result["taskId"]

    async def _follow(self, wires: Sequence[Wire], call: Call, chance: random.Random) -> None:
        while call.end is None and not call.lost:
            await asyncio.sleep(POLL_SECONDS)
            try:
                answer = await chance.choice(wires).ask("tasks/get", {"taskId": call.task_id})
            except (httpx2.HTTPError, ValueError):
                self.unanswered += 1
                continue
            if "error" in answer.message:
                call.lost = "not found" in answer.error["message"]
            elif answer.result["status"] not in ("working", "input_required"):
                call.end = answer.result
