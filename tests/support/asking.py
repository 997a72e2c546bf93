"""The scripted server as a process of its own: ``python -m tests.support.asking``. Its tasks play a part."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import mcp_types as types
from mcp.server.context import CallNext, HandlerResult

from tests.support.locks import reserve_port
from tests.support.scripted import JSON, Context, HttpServer, Scripted, elicitation
from tests.support.waiting import eventually

PIXEL = base64.b64encode(b"\x89PNG not really").decode()
PERSON: JSON = {
    "name": {"type": "string", "title": "Your name", "minLength": 2},
    "age": {"type": "integer", "minimum": 0, "default": 36},
    "colour": {"type": "string", "enum": ["red", "green"], "description": "What you like best."},
    "news": {"type": "boolean"},
    "topics": {"type": "array", "items": {"type": "string", "enum": ["art", "sport"]}},
}


class Asking(Scripted):
    """One tool for each part; all take ``text``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.playing: set[asyncio.Task[None]] = set()

        async def part(text: str = "", number: int = 0) -> str:
            return f"{text} {number} in the foreground".strip()

        for name in [name for name in vars(Asking) if name.startswith("play_")]:
            self.server.add_tool(part, name=name.removeprefix("play_"), structured_output=False)

    async def intercept_tool_call(
        self, params: types.CallToolRequestParams, ctx: Context, call_next: CallNext
    ) -> HandlerResult:
        declared = (ctx.params or {})["_meta"]["io.modelcontextprotocol/clientCapabilities"].get("extensions")
        if params.name == "work" or not declared:
            return await call_next(ctx)
        created: Any = await super().intercept_tool_call(params, ctx, call_next)
        task = asyncio.create_task(getattr(self, f"play_{params.name}")(created["taskId"], params.arguments or {}))
        self.playing.add(task)
        task.add_done_callback(self.playing.discard)
        return created

    async def answered(self, task_id: str, key: str) -> JSON:
        await eventually(lambda: key in self.answers.get(task_id, {}), seconds=300)
        return self.answers[task_id][key][0]

    async def play_show(self, task_id: str, arguments: JSON) -> None:
        await self.listened(task_id)
        for step in (1, 2):
            progress = {"mcp-celery/progress": {"progress": step, "total": 2}}
            self.set(task_id, "working", statusMessage=f"step {step} \x1b[31mred", _meta=progress)
            await asyncio.sleep(0.05)
        rows = [{"name": "Ada", "born": 1815}, {"name": "Grace", "born": 1906, "note": "[b]x[/b]"}]
        content = [{"type": "text", "text": f"said {arguments!r} \x1b[2J"}]
        self.set(task_id, "completed", result={"content": content, "structuredContent": {"result": rows}})

    async def play_ask(self, task_id: str, arguments: JSON) -> None:
        question = elicitation("Who are you?", **PERSON)
        question["params"]["requestedSchema"]["required"] = ["name", "colour", "news"]
        self.ask(task_id, person=question)
        answer = await self.answered(task_id, "person")
        self.complete(task_id, f"{answer['action']}: {answer.get('content')}")

    async def play_echo(self, task_id: str, arguments: JSON) -> None:
        self.complete(task_id, arguments["text"])

    async def play_odd(self, task_id: str, arguments: JSON) -> None:
        """Asks with a form that is none."""
        params = {"mode": "form", "message": "Well?", "requestedSchema": json.loads(arguments["text"])}
        self.ask(task_id, odd={"method": "elicitation/create", "params": params})
        self.complete(task_id, (await self.answered(task_id, "odd"))["action"])

    async def play_tangle(self, task_id: str, arguments: JSON) -> None:
        """Asks with a form against which no value can be checked in anybody's lifetime."""
        deeper = {f"d{one}": {"allOf": [{"$ref": f"#/$defs/d{one - 1}"}] * 2} for one in range(1, 60)}
        question = elicitation("Well?", knot={"type": "string", "$ref": "#/$defs/d59"})
        question["params"]["requestedSchema"]["$defs"] = {"d0": {"type": "string"}, **deeper}
        self.ask(task_id, tangle=question)
        self.complete(task_id, (await self.answered(task_id, "tangle"))["action"])

    async def play_visit(self, task_id: str, arguments: JSON) -> None:
        params = {"mode": "url", "message": "Please sign in.", "url": "https://login.example/"}
        self.ask(task_id, visit={"method": "elicitation/create", "params": params})
        self.complete(task_id, (await self.answered(task_id, "visit"))["action"])

    async def play_paint(self, task_id: str, arguments: JSON) -> None:
        image = {"type": "image", "data": PIXEL, "mimeType": "image/png"}
        link = {"type": "resource_link", "uri": "file:///a", "name": "a link"}
        blob = {"type": "resource", "resource": {"uri": "file:///b", "blob": PIXEL}}
        text = {"type": "resource", "resource": {"uri": "file:///c", "text": "read me"}}
        self.set(task_id, "completed", result={"content": [image, image, link, blob, text]})

    async def play_flood(self, task_id: str, arguments: JSON) -> None:
        """Files of kinds that run, and more of them than anybody wants."""
        kinds = (
            "application/x-sh",
            "text/html",
            "image/svg+xml",
            "application/x-msdownload",
            "../../x",
            "IMAGE/PNG; a=b",
        )
        odd = [{"type": "image", "data": PIXEL, "mimeType": kind} for kind in kinds]
        many = [{"type": "image", "data": PIXEL, "mimeType": "image/gif"}] * 150
        self.set(task_id, "completed", result={"content": [*odd, *many]})

    async def play_fail(self, task_id: str, arguments: JSON) -> None:
        if arguments.get("text") == "tool":
            content = [{"type": "text", "text": "the tool gave up"}]
            self.set(task_id, "completed", result={"isError": True, "content": content})
        else:
            self.set(task_id, "failed", error={"code": -32050, "message": "the gears are stuck"})

    async def play_ramble(self, task_id: str, arguments: JSON) -> None:
        """Goes on with a message that is wider than a terminal."""
        await self.listened(task_id)
        progress = {"mcp-celery/progress": {"progress": 1, "total": 2}}
        self.set(task_id, "working", statusMessage="counting sheep " * 20, _meta=progress)

    async def play_hang(self, task_id: str, arguments: JSON) -> None:
        self.set(task_id, "working", statusMessage="hanging")

    async def play_wrong(self, task_id: str, arguments: JSON) -> None:
        self.ask(task_id, roots={"method": "roots/list"})


async def main() -> None:
    server = HttpServer(Asking(poll_interval_ms=100).server, reserve_port())
    await server.start()
    print(f"Answers at {server.url}", flush=True)  # noqa: T201 - whoever started it waits for that
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
