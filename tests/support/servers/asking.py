"""A server with a tool for each way to ask. The worker and the test each make their own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Final

import anyio.from_thread
from celery import Celery
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.resolve import Elicit, ListRoots, Resolve, Sample
from mcp_types import (
    CreateMessageResult,
    ElicitRequest,
    ElicitRequestFormParams,
    InputRequiredResult,
    ListRootsResult,
    SamplingMessage,
    TextContent,
)
from pydantic import BaseModel

from mcp_celery import Settings, TaskConfig, TaskServer, get_task_context
from tests.support.servers.tools import append

IMPATIENT: Final = TaskConfig(input_timeout=0.2)
PERSISTENT: Final = TaskConfig(autoretry_for=(ConnectionError,), max_retries=1)
REPEATABLE: Final = TaskConfig(acks_late=True)
DURING: Final = TaskConfig(ask="during")
BEFORE: Final = TaskConfig(ask="before")


class Name(BaseModel):
    name: str


class Size(BaseModel):
    size: int


def form(message: str, schema: type[BaseModel] = Name) -> ElicitRequest:
    return ElicitRequest(params=ElicitRequestFormParams(message=message, requested_schema=schema.model_json_schema()))


def read(path: str) -> list[str]:
    return Path(path).read_text().split()


def where() -> str:
    """Where this runs."""
    return "in the foreground" if get_task_context() is None else "in a job"


def a_message(text: str) -> SamplingMessage:
    return SamplingMessage(role="user", content=TextContent(type="text", text=text))


async def ask_name(ctx: Context) -> Elicit[Name]:
    return Elicit("Your name?", Name)


def ask_size(who: Annotated[Name, Resolve(ask_name)]) -> Elicit[Size]:
    return Elicit(f"Which size, {who.name}?", Size)


def ask_model() -> Sample:
    return Sample([a_message("a word")], max_tokens=5)


def ask_roots() -> ListRoots:
    return ListRoots()


def build(*, celery: Celery | None = None, settings: Settings | None = None) -> TaskServer:  # noqa: C901, PLR0915
    """Make the server."""
    server = TaskServer("asking", task=True, celery=celery, settings=settings)

    @server.tool()
    async def greet(ctx: Context) -> str:
        answer = await ctx.elicit("Your name?", Name)
        return f"Hello, {answer.data.name}!" if answer.action == "accept" else answer.action

    server.tool("greet_impatiently", task=IMPATIENT)(greet)
    server.tool("greet_again", task=REPEATABLE)(greet)

    @server.tool()
    def greet_sync(ctx: Context) -> str:
        answer = anyio.from_thread.run(ctx.elicit, "Your name?", Name)
        return f"Hello, {answer.data.name}!" if answer.action == "accept" else answer.action

    @server.tool()
    async def ask_three(label: str, ctx: Context) -> str:
        answers = await asyncio.gather(*(ctx.elicit(f"{label} {n}?", Name) for n in range(3)))
        return " ".join(answer.data.name for answer in answers if answer.action == "accept")

    @server.tool()
    async def one_after_the_other(ctx: Context) -> str:
        answers = [await ctx.elicit("Sure?", Name) for _ in range(3)]
        return " ".join(answer.data.name for answer in answers if answer.action == "accept")

    @server.tool()
    async def sign_in(ctx: Context) -> str:
        return (await ctx.elicit_url("Sign in", "https://login.example/x", "login-1")).action

    @server.tool()
    async def think(ctx: Context) -> str:
        result = await ctx.session.create_message([a_message("a word")], max_tokens=5)  # pyright: ignore[reportDeprecated]
        return f"{result.model}: {result.content.text}" if isinstance(result.content, TextContent) else result.model

    server.tool("think_impatiently", task=IMPATIENT)(think)

    @server.tool()
    async def look_around(ctx: Context) -> list[str]:
        return [str(root.uri) for root in (await ctx.session.list_roots()).roots]  # pyright: ignore[reportDeprecated]

    @server.tool()
    def resolved(
        who: Annotated[Name, Resolve(ask_name)],
        size: Annotated[Size, Resolve(ask_size)],
        word: Annotated[CreateMessageResult, Resolve(ask_model)],
        roots: Annotated[ListRootsResult, Resolve(ask_roots)],
    ) -> str:
        return f"{who.name} {size.size} {word.model} {len(roots.roots)}"

    @server.tool(task=TaskConfig(mode="required"))
    async def introduce(ctx: Context) -> str | InputRequiredResult:
        """Says nothing of when it asks: its annotation does."""
        if not ctx.input_responses:
            return InputRequiredResult(input_requests={"name": form("Your name?")}, request_state="secret plan")
        answer: Any = ctx.input_responses["name"]
        return f"Hello, {answer.content['name']}: {ctx.request_state}, {where()}"

    @server.tool(task=BEFORE)
    def resolved_before(who: Annotated[Name, Resolve(ask_name)], size: Annotated[Size, Resolve(ask_size)]) -> str:
        return f"{who.name} {size.size}"

    @server.tool()
    async def give_up(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0.2):
                await ctx.elicit("Quick?", Name)
        except TimeoutError:
            return "too slow"
        return "quick"

    @server.tool()
    async def forget(ctx: Context) -> str:
        ask = asyncio.create_task(ctx.elicit("Anybody?", Name))
        ask.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.sleep(0.2)
        return "did not wait"

    @server.tool()
    async def chat(gate: str, ctx: Context) -> str:
        async def talk() -> None:
            for step in range(1, 10_000):
                await ctx.report_progress(step, message="still here")
                await asyncio.sleep(0.02)
                if (Path(gate) / "opened").exists():
                    return

        answer, _ = await asyncio.gather(ctx.elicit("Your name?", Name), talk())
        return answer.action

    @server.tool(task=PERSISTENT)
    async def fails_while_asking(notes: str, ctx: Context) -> str:
        append(Path(notes), "begun")
        if len(read(notes)) > 1:
            return (await ctx.elicit("Second try?", Name)).action

        async def fail() -> None:
            await asyncio.sleep(0.2)
            raise ConnectionError

        await asyncio.gather(ctx.elicit("First try?", Name), fail())
        return "never"

    @server.tool()
    async def ask_nonsense(ctx: Context) -> str:
        return (await ctx.session.elicit_form("?", {"type": "objekt"})).action

    @server.tool()
    async def ping(ctx: Context) -> str:
        await ctx.session.send_ping()
        return "pong"

    @server.tool(task=DURING)
    async def journey(notes: str, ctx: Context) -> str | InputRequiredResult:
        """Asks twice, under one name, and remembers the first answer in its state."""
        append(Path(notes), ctx.request_state or "begun")
        if ctx.input_responses is None:
            await ctx.report_progress(1, 3, "packed")
            return InputRequiredResult(input_requests={"where": form("Where to?")}, request_state="first")
        answer: Any = ctx.input_responses["where"]
        if ctx.request_state == "first":
            return InputRequiredResult(
                input_requests={"where": form("And then?")}, request_state=f"then {answer.content['name']}"
            )
        return f"{(ctx.request_state or '').removeprefix('then ')}, {answer.content['name']}"

    @server.tool(task=DURING)
    async def three_at_once(label: str, ctx: Context) -> str | InputRequiredResult:
        if ctx.input_responses is None:
            return InputRequiredResult(input_requests={f"{label}.{n}": form(f"{label} {n}?") for n in range(3)})
        answers: dict[str, Any] = dict(ctx.input_responses)
        return " ".join(answers[f"{label}.{n}"].content["name"] for n in range(3))

    @server.tool(task=DURING)
    async def both_ways(ctx: Context) -> str | InputRequiredResult:
        """Awaits one answer in each of its jobs."""
        if ctx.input_responses is None:
            first = await ctx.elicit("Awaited first?", Name)
            state = first.data.name if first.action == "accept" else first.action
            return InputRequiredResult(input_requests={"a.b": form("Returned?")}, request_state=state)
        last = await ctx.elicit("Awaited last?", Name)
        returned: Any = ctx.input_responses["a.b"]
        return f"{ctx.request_state} {returned.content['name']} {last.action}"

    @server.tool(task=DURING)
    async def call_again(times: int, ctx: Context) -> str | InputRequiredResult:
        done = int(ctx.request_state or 0)
        return f"called {done + 1} times" if done == times else InputRequiredResult(request_state=str(done + 1))

    @server.tool(task=TaskConfig(ask="during", expires=1))
    async def brief(ctx: Context) -> str | InputRequiredResult:
        return "done" if ctx.input_responses else InputRequiredResult(input_requests={"go": form("Go?")})

    return server


server = build()
