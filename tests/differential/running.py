"""Runs a module of tools: the servers and the worker that load it, and every call in every way."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcp_celery.embedded import EmbeddedStore
from tests.differential.calls import REVISIONS, Caller, Outcome, Revision, caller
from tests.differential.differences import WAYS, Pair, Way, compare, compare_fatal, compare_listed
from tests.differential.plain_server import MODULE_VARIABLE
from tests.differential.tools import Tool, names, write_module
from tests.support.deployment import answering_url
from tests.support.leaks import no_eternal_keys
from tests.support.nodes import Pool, ProcessContainer, WorkerProcess, environment, short_folder

AT_A_TIME: Final = 8
SERVER: Final = "tests.differential.task_server:server"


@dataclass(frozen=True)
class Finding:
    """A call that went otherwise than on a plain server.

    Args:
        tool: What was called.
        revision: In which revision.
        way: How it was run.
        plain: What the plain server answered, None where it was not called.
        other: What the server with tasks answered.
        difference: Where the answers differ.
    """

    tool: Tool
    revision: Revision
    way: Way
    plain: Outcome | None
    other: Outcome
    difference: str

    @property
    def kind(self) -> str:
        """Tells it from findings that have another cause: what became what, and where in it."""
        where = self.difference.partition(":")[0].partition("[")[0].split(".")[:2]
        return " ".join([self.plain.kind if self.plain else "fatal", self.other.kind, *where])


class _Server(ProcessContainer):
    ready_prompt = "nswers at http"

    @property
    def url(self) -> str:
        return answering_url(self._log, self.process)


def _plain_server(folder: Path, module: Path) -> _Server:
    argv = [sys.executable, "-m", "tests.differential.plain_server", str(module)]
    return _Server(argv, name="plain", folder=folder, env=environment())


def _task_server(folder: Path, name: str, settings: Mapping[str, str]) -> _Server:
    argv = [sys.executable, "-m", "mcp_celery", "serve", SERVER, "--port", "0"]
    return _Server(argv, name=name, folder=folder, env=environment(**settings))


class Rig:
    """A client of each server in each revision.

    Args:
        plain: Of the server without tasks.
        ways: Of the servers with tasks.
    """

    def __init__(self, plain: Mapping[Revision, Caller], ways: Mapping[tuple[Way, Revision], Caller]) -> None:
        self.plain = plain
        self.ways = ways

    async def findings(self, tools: Sequence[Tool]) -> list[Finding]:
        """Call every tool in every way.

        Args:
            tools: Those of the servers' module, in its order.
        """
        found = await self._listed(tools)
        turns = asyncio.Semaphore(AT_A_TIME)

        async def examine(name: str, tool: Tool, ways: Sequence[Way]) -> None:
            async with turns:
                found.extend([finding async for finding in self._examine(name, tool, ways)])

        everything = list(zip(names(tools), tools, strict=True))
        fatal = [(name, tool) for name, tool in everything if tool.is_fatal]
        await asyncio.gather(*(examine(name, tool, WAYS) for name, tool in everything if not tool.is_fatal))
        # Last, because what they end would be missing to the others.
        await asyncio.gather(*(examine(name, tool, ("task", "worker")) for name, tool in fatal))
        for name, tool in fatal:
            await examine(name, tool, ("server",))
        return found

    async def _listed(self, tools: Sequence[Tool]) -> list[Finding]:
        """Tools that ``tools/list`` describes otherwise."""
        found: list[Finding] = []
        for revision in REVISIONS:
            plain = await self.plain[revision].listed()
            if plain is None:  # the schema of a tool, such as one with a default that is no text, is no JSON
                continue
            other = await self.ways["task", revision].listed() or {}
            for name, tool in zip(names(tools), tools, strict=True):
                one, two = Outcome("result", plain.get(name)), Outcome("result", other.get(name))
                if difference := compare_listed(one, two):
                    found.append(Finding(tool, revision, "task", one, two, difference))
        return found

    async def _examine(self, name: str, tool: Tool, ways: Sequence[Way]) -> AsyncGenerator[Finding]:
        for revision in REVISIONS:
            plain = None if tool.is_fatal else await self.plain[revision].call(name, tool.call())
            for way in ways:
                other = await self._called(way, revision, name, tool)
                judged = (
                    compare_fatal(other) if plain is None else compare(Pair(tool.logs, revision, way, plain, other))
                )
                if difference := judged:
                    yield Finding(tool, revision, way, plain, other, difference)

    async def _called(self, way: Way, revision: Revision, name: str, tool: Tool) -> Outcome:
        client = self.ways[way, revision]
        return await (client.run if way == "task" else client.call)(name, tool.call())


@asynccontextmanager
async def rig(tools: Sequence[Tool], pool: Pool) -> AsyncGenerator[Rig]:
    """Start a store, and the servers and the worker that run tools, all at once."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(short_folder())
        store = stack.enter_context(EmbeddedStore.open(folder / "store"))
        module = folder / "tools.py"
        write_module(tools, module)
        settings = {
            MODULE_VARIABLE: str(module),
            "MCP_CELERY_REDIS_URL": store.url,
            "MCP_CELERY_NAMESPACE": "differential",
        }
        worker = WorkerProcess(SERVER, pool, folder=folder, settings=settings)
        plain = _plain_server(folder, module)
        here = _task_server(folder, "server", settings)
        waiting = _task_server(folder, "waiting-server", {**settings, "MCP_CELERY_FOREGROUND": "worker"})
        nodes = (worker, plain, here, waiting)
        for node in nodes:
            stack.callback(node.teardown)
            node.start()
        for node in nodes:
            await asyncio.to_thread(node.ready)
        clients = {
            (node, revision): await stack.enter_async_context(caller(node.url, revision))
            for node in (plain, here, waiting)
            for revision in REVISIONS
        }
        servers: Mapping[Way, _Server] = {"task": waiting, "server": here, "worker": waiting}
        with no_eternal_keys(store.url):
            yield Rig(
                {revision: clients[plain, revision] for revision in REVISIONS},
                {(way, revision): clients[servers[way], revision] for way in WAYS for revision in REVISIONS},
            )


async def examined(tools: Sequence[Tool], pool: Pool) -> list[Finding]:
    """Run a module of tools on servers and a worker of its own, and hold every answer against the plain server's."""
    async with rig(tools, pool) as running:
        return await running.findings(tools)
