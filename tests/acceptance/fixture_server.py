"""The server of the acceptance tests, and of the conformance suite: `server` for anybody, `guarded` for bearers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.from_thread
from mcp.server import MCPServer
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ElicitRequest, ElicitRequestFormParams, InputRequiredResult, TextContent
from pydantic import AnyHttpUrl, BaseModel

from mcp_celery import TaskConfig, TaskMeta, TaskServer, get_task_context
from mcp_celery.context import get_task_scope
from mcp_celery.protocol import IMMEDIATE_RESPONSE

TOKENS = {
    # what a bearer of the token is: client, subject, issuer
    "alice": ("app", "alice", "https://one.example"),
    "bob": ("app", "bob", "https://one.example"),
    "alice-who-writes": ("app", "alice", "https://one.example"),
    "alice-elsewhere": ("app", "alice", "https://two.example"),
    "machine": ("robot", None, None),
    "mallory": ("app", "mallory", "https://one.example"),
}


class Measured(BaseModel):
    """A structured result."""

    label: str
    values: list[int]


class Name(BaseModel):
    """An answer."""

    name: str


class Confirmation(BaseModel):
    """An answer."""

    confirm: bool


IN_CLAIMS = ("carol", "dave")
"""Tokens of one client whose subject stands in the claims alone."""


class Verifier:
    """Knows the tokens above."""

    async def verify_token(self, token: str) -> AccessToken | None:
        if token in IN_CLAIMS:
            return AccessToken(token=token, client_id="app", scopes=["use"], claims={"sub": token})
        if token not in TOKENS:
            return None
        client, subject, issuer = TOKENS[token]
        scopes = ["use", "write"] if token == "alice-who-writes" else ["use"]
        claims = None if issuer is None else {"iss": issuer}
        return AccessToken(token=token, client_id=client, scopes=scopes, subject=subject, claims=claims)


@asynccontextmanager
async def lifespan(_: MCPServer[Any]) -> AsyncGenerator[dict[str, str]]:
    yield {"greeting": "hello from the lifespan"}


def add_tools(server: TaskServer) -> TaskServer:  # noqa: C901 - many tools, none of them complex
    """The same tools for both servers, so that one worker serves both."""

    @server.tool()
    def greet(name: str) -> str:
        return f"Hello, {name}!"

    @server.tool(task=TaskConfig(required_scopes=["use", "write"], foreground="server"))
    async def needs_write() -> str:
        return "written"

    @server.tool(task=True)
    async def slow_compute(seconds: float = 1.0, label: str = "") -> str:
        await asyncio.sleep(seconds)
        return f"done {label}".strip()

    @server.tool(task=TaskConfig(mode="required"))
    async def failing_job() -> str:
        await asyncio.sleep(0.2)
        raise ValueError("boom")

    @server.tool(task=True)
    def refusing() -> str:
        raise ToolError("No such dataset")

    @server.tool(task=True)
    async def protocol_error_job() -> str:
        raise MCPError(-32050, "the gears are stuck", {"gear": 7})

    @server.tool(task=True)
    async def counting(steps: int, ctx: Context, pause: float = 0.12) -> str:
        for step in range(1, steps + 1):
            await ctx.report_progress(step, steps, f"step {step}")
            await asyncio.sleep(pause)
        return f"counted to {steps}"

    @server.tool(task=True)
    def in_a_thread(steps: int, ctx: Context) -> str:
        for step in range(1, steps + 1):
            anyio.from_thread.run(ctx.report_progress, step, steps)
            time.sleep(0.02)
        return "sync"

    @server.tool(task=True)
    async def measured(label: str, values: list[int]) -> Measured:
        return Measured(label=label, values=values)

    @server.tool(task=True)
    async def large(result_bytes: int, ctx: Context, progress: bool = False) -> str:
        """A result of about so many bytes of JSON: it has the text twice, as text and as structured content."""
        if progress:
            await ctx.report_progress(1, 1)
        return "x" * (result_bytes // 2)

    @server.tool(task=True)
    async def unserializable() -> CallToolResult:
        return CallToolResult(content=[TextContent(type="text", text="x")], structured_content={"x": object()})

    @server.tool(task=True)
    async def whereabouts(ctx: Context) -> dict[str, Any]:
        context = get_task_context()
        state: Any = ctx.request_context.lifespan_context
        return {
            "job": None if context is None else context.job_id,
            "scope": get_task_scope(),
            "headers": dict(ctx.headers or {}),
            "greeting": state["greeting"],
            "readme": next(str(one.content) for one in await ctx.read_resource("fixture://readme")),
        }

    @server.tool(task=True)
    async def wait_for_file(path: str) -> str:
        """Says that it has begun, and ends when the test says so."""
        Path(f"{path}.awaited").touch()  # noqa: ASYNC240 - as below
        while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - a file is what another process can make
            await asyncio.sleep(0.01)
        return "released"

    @server.tool(task=True, structured_output=False)
    async def repeated(text: str, times: int) -> str:
        return text * times

    @server.tool(task=TaskConfig(ttl=2_000))
    async def short_lived() -> str:
        return "soon forgotten"

    @server.tool(task=True)
    async def confirm_delete(filename: str, ctx: Context) -> str:
        answer = await ctx.elicit(f"Delete {filename}?", Confirmation)
        return f"{answer.action}: {filename}"

    @server.tool(task=True)
    async def multi_input(ctx: Context) -> str:
        name, sure = await asyncio.gather(ctx.elicit("Your name?", Name), ctx.elicit("Sure?", Confirmation))
        return f"{name.action}, {sure.action}"

    @server.tool(task=TaskConfig(mode="required"))
    async def test_tool_with_task(ctx: Context) -> str | InputRequiredResult:
        if not ctx.input_responses:
            question = ElicitRequestFormParams(message="Your name?", requested_schema=Name.model_json_schema())
            return InputRequiredResult(input_requests={"user_name": ElicitRequest(params=question)})
        answer: Any = ctx.input_responses["user_name"]
        return f"Hello, {answer.content['name']}!"

    @server.tool(task=True, meta={IMMEDIATE_RESPONSE: "The oven is heating; ask again in an hour."})
    async def slow_roast() -> CallToolResult:
        return CallToolResult(content=[TextContent(type="text", text="roasted")], _meta={"kitchen/oven": 7})

    @server.tool(task=True)
    async def delegating(ctx: Context) -> str:
        """Leaves the work to another task; gives its id."""
        return (await server.call_tool("slow_compute", {"seconds": 0}, ctx, task_meta=TaskMeta())).task_id

    @server.resource("fixture://readme")
    def readme() -> str:
        return "read me"

    return add_prompts_and_resources(server)


def add_prompts_and_resources(server: TaskServer) -> TaskServer:
    """Prompts, resources and templates that run as tasks, may, must and must not."""

    @server.prompt(task=True)
    async def briefing(topic: str, tone: str = "plain") -> str:
        job = get_task_context()
        return f"A {tone} briefing about {topic}, {'in the foreground' if job is None else 'as a task'}"

    @server.prompt(task=True)
    def broken_prompt() -> str:
        raise ValueError("boom")

    @server.prompt()
    def plain_prompt() -> str:
        return "plain"

    @server.resource("fixture://report", task=True, mime_type="text/markdown")
    async def report() -> str:
        return "# Report"

    @server.resource("fixture://archive", task=TaskConfig(mode="required"))
    def archive() -> bytes:
        return b"\x00archive"

    @server.resource("fixture://pages/{number}", task=True)
    def page(number: int) -> str:
        return f"page {number}"

    return server


server = add_tools(TaskServer("acceptance", lifespan=lifespan, log_level="WARNING"))
guarded = add_tools(
    TaskServer(
        "acceptance",
        lifespan=lifespan,
        log_level="WARNING",
        token_verifier=Verifier(),
        auth=AuthSettings(
            issuer_url=AnyHttpUrl("https://one.example"), resource_server_url=None, required_scopes=["use"]
        ),
    )
)
