"""Clients that create tasks and follow each to its end, whatever answers meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from tests.soak.server import digest
from tests.support.wire import JSON, Wire

FOREGROUND: Final = "in_the_foreground"
IN_SERVER: Final = "exits_in_the_server"
PLAIN: Final = (FOREGROUND, IN_SERVER)
"""Called by clients that know no tasks."""
TOOLS: Final = {
    "once": 4,
    "once_sync": 2,
    "again": 4,
    FOREGROUND: 2,
    "flaky": 1,
    "refuse": 1,
    "big": 1,
    "exits": 1,
    "exits_sync": 1,
    IN_SERVER: 1,
    "changed": 3,
    "theirs": 2,
}
"""The tools, and how often each is called as compared with the others."""
LONGEST_SECONDS: Final = 3.0
POLL_SECONDS: Final = 0.5
NO_ANSWER: Final = (httpx2.HTTPError, ValueError, IndexError)
"""What the wire raises of a server that died: no connection, half an answer, or a stream that ends without one."""


@dataclass
class Call:
    """One call of a tool.

    Attributes:
        number: Its argument; no two calls share one.
        tool: Its tool.
        refused: The JSON-RPC error code that its creation was answered with.
        reason: The message of that error.
        task_id: The task that was created; None with ``refused`` None: the server died before it answered.
        version: The version of the server that created it.
        end: The terminal task; of a call in the foreground its result. Of a big result there are digests.
        lost: ``tasks/get`` said that there is no such task.
        created_at: When the creation was answered, in seconds since the epoch.
        ended_at: When its end was read, or that it is lost.
    """

    number: int
    tool: str
    refused: int | None = None
    reason: str = ""
    task_id: str | None = None
    version: str | None = None
    end: JSON | None = None
    lost: bool = False
    created_at: float = 0.0
    ended_at: float = 0.0

    @property
    def arguments(self) -> JSON:
        """What it passes besides how long it lasts."""
        return {"number": self.number, **({"more": self.number} if self.tool == "changed" else {})}


@dataclass
class Load:
    """Clients of several replicas of one server.

    Attributes:
        tools: The tools that they call, and how often each as compared with the others.
        calls: What they have called.
        unanswered: How many requests got no answer.
    """

    urls: Sequence[str]
    clients: int
    seed: int
    tools: Mapping[str, int] = field(default_factory=lambda: TOOLS)
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
            call = Call(next(numbers), chance.choices(list(self.tools), list(self.tools.values()))[0])
            self.calls.append(call)
            seconds = chance.uniform(0, LONGEST_SECONDS)
            if call.tool in PLAIN:
                following.append(asyncio.create_task(self._send(chance.choice(plain), call, seconds)))
            else:
                await self._send(chance.choice(wires), call, seconds)
            if call.task_id is not None:
                following.append(asyncio.create_task(self._follow(wires, call, chance)))
            await asyncio.sleep(chance.uniform(0, 1.0))
        await asyncio.gather(*following)

    async def _send(self, wire: Wire, call: Call, seconds: float) -> None:
        try:
            answer = await wire.call(call.tool, seconds=seconds, **call.arguments)
        except NO_ANSWER:
            self.unanswered += 1
            return
        if "error" in answer.message:
            call.refused, call.reason = answer.error["code"], answer.error["message"]
        elif call.tool in PLAIN:
            call.end = answer.result
        else:
            call.task_id, call.created_at = answer.result["taskId"], time.time()
            call.version = answer.result["_meta"]["io.modelcontextprotocol/serverInfo"]["version"]

    async def _follow(self, wires: Sequence[Wire], call: Call, chance: random.Random) -> None:
        while call.end is None and not call.lost:
            await asyncio.sleep(POLL_SECONDS)
            try:
                answer = await chance.choice(wires).ask("tasks/get", {"taskId": call.task_id})
            except NO_ANSWER:
                self.unanswered += 1
                continue
            call.ended_at = time.time()
            if "error" in answer.message:
                call.lost = "not found" in answer.error["message"]
            elif answer.result["status"] not in ("working", "input_required"):
                call.end = _without_big_texts(answer.result) if call.tool == "big" else answer.result


def _without_big_texts(task: JSON) -> JSON:
    """A task with digests in place of the texts of its result."""
    result: Any = task.get("result", {})
    if result.get("isError") or "structuredContent" not in result:
        return task
    texts = [result["structuredContent"]["result"], *(block["text"] for block in result["content"])]
    return {**task, "result": {"digests": [digest(text) for text in texts]}}
