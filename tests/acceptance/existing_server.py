"""An ``MCPServer`` that knew nothing of tasks, fitted with ``CeleryTasks``: tools, a prompt, a resource, a template."""

from __future__ import annotations

from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Context

from mcp_celery import CeleryTasks


def make_server() -> MCPServer[Any]:
    """The server as it was."""
    server: MCPServer[Any] = MCPServer("Existing Notes", log_level="WARNING")

    @server.tool()
    async def add(left: int, right: int, ctx: Context) -> int:
        await ctx.report_progress(1, 1, "added")
        return left + right

    @server.tool()
    def plain() -> str:
        return "in the foreground"

    @server.prompt()
    def summary(topic: str) -> str:
        return f"Summarize {topic}"

    @server.resource("notes://today")
    def today() -> str:
        return "nothing today"

    @server.resource("notes://{day}/text")
    async def text(day: str) -> str:
        if day == "never":
            raise ValueError("a secret reason")
        return f"the text of {day}"

    return server


def fit(server: MCPServer[Any], **options: Any) -> CeleryTasks:
    """The one thing that its authors add."""
    tasks = CeleryTasks(
        tools={"add": True},
        prompts={"summary": True},
        resources={"notes://today": True, "notes://{day}/text": True},
        **options,
    )
    tasks.install(server)
    return tasks


server = make_server()
fit(server)
