"""A server before a deploy and after it: a component for each way in which one changes. What runs says its version."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import anyio

from mcp_celery import Settings, TaskConfig, TaskServer

Version = Literal["old", "new"]
VERSION_VARIABLE = "TEST_DEPLOYS_VERSION"
"""Names the version that a worker of somebody else's app has."""
QUEUE_VARIABLE = "TEST_DEPLOYS_QUEUE"
"""Names the queue of a tool's jobs, after the deploy."""


def build(version: Version, **options: Any) -> TaskServer:
    """Make the server of one version.

    Args:
        version: Which one.
        **options: As for the server.
    """
    server = TaskServer("deploys", task=True, **options)

    def said(**arguments: Any) -> dict[str, Any]:
        return {"by": version, **arguments}

    @server.tool()
    async def hold(gate: str) -> dict[str, Any]:
        """Wait until a file is there. The same in both versions."""
        with (Path(gate) / "arrived").open("a") as file:
            file.write(version + "\n")
        while not (Path(gate) / "opened").exists():  # noqa: ASYNC110 - the opener is another process
            await anyio.sleep(0.01)
        return said()

    @server.tool()
    def body() -> dict[str, Any]:
        """Only its body changes."""
        return said()

    if version == "old":
        _add_old(server, said)
    else:
        _add_new(server, said)
    return server


def _add_old(server: TaskServer, said: Any) -> None:  # noqa: C901 - many components
    @server.tool()
    def added(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool()
    def demanded(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool()
    def removed(x: int, y: int = 1) -> dict[str, Any]:
        return said(x=x, y=y)

    @server.tool()
    def renamed(count: int = 1) -> dict[str, Any]:
        return said(count=count)

    @server.tool()
    def retyped(x: str) -> dict[str, Any]:
        return said(x=x)

    @server.tool()
    def defaulted(x: int = 1) -> dict[str, Any]:
        return said(x=x)

    @server.tool(task=TaskConfig(version="1"))
    def versioned(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool()
    def gone(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool(task=False)
    def enabled(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool()
    async def made_sync(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool(description="What it does.")
    def documented(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.prompt(task=True)
    def briefing(topic: str) -> str:
        return json.dumps(said(topic=topic))

    @server.resource("report://{year}", task=True)
    def report(year: str) -> str:
        return json.dumps(said(year=year))


def _add_new(server: TaskServer, said: Any) -> None:  # noqa: C901 - many components
    @server.tool()
    def added(x: int, y: int = 1) -> dict[str, Any]:
        return said(x=x, y=y)

    @server.tool()
    def demanded(x: int, y: int) -> dict[str, Any]:
        return said(x=x, y=y)

    @server.tool()
    def removed(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool()
    def renamed(number: int = 1) -> dict[str, Any]:
        return said(number=number)

    @server.tool()
    def retyped(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool()
    def defaulted(x: int = 2) -> dict[str, Any]:
        return said(x=x)

    @server.tool(task=TaskConfig(version="2"))
    def versioned(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool()
    def fresh(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool()
    def enabled(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool()
    def made_sync(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool(description="What it does, in other words.")
    def documented(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.tool(task=TaskConfig(queue=os.environ.get(QUEUE_VARIABLE)))
    def routed(x: int) -> dict[str, Any]:
        return said(x=x)

    @server.prompt(task=True)
    def briefing(topic: str, style: str = "plain") -> str:
        return json.dumps(said(topic=topic, style=style))

    @server.resource("report://{year}/{month}", task=True)
    def report(year: str, month: str) -> str:
        return json.dumps(said(year=year, month=month))


old = build("old", settings=Settings.load())
new = build("new", settings=Settings.load())
