"""A server whose tools tell who they think is calling. A bearer token says by itself who its bearer is."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from celery import Celery
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from opentelemetry.trace import get_current_span
from pydantic import AnyHttpUrl

from mcp_celery import (
    Settings,
    TaskConfig,
    TaskMeta,
    TaskServer,
    get_task_context,
    get_task_scope,
    get_task_server,
    get_task_session_id,
)

HOLD_SECONDS = 300.0
NOBODYS_QUEUE = "nobody-consumes-this"


@dataclass(frozen=True)
class Bearer:
    """Who a token is for; empty parts are absent. ``secret`` is what makes it findable in a dump."""

    client: str
    subject: str = ""
    issuer: str = ""
    expires_at: int | None = None
    secret: str = ""

    @property
    def token(self) -> str:
        return "~".join([self.client, self.subject, self.issuer, str(self.expires_at or ""), self.secret])

    @property
    def scope(self) -> str:
        return f"{self.client}|{self.subject}" if self.subject else self.client


def access_token(token: str) -> AccessToken:
    client, subject, issuer, expires_at, _secret = token.split("~")
    return AccessToken(
        token=token,
        client_id=client,
        scopes=["use"],
        subject=subject or None,
        expires_at=int(expires_at) if expires_at else None,
        claims={"iss": issuer, "note": f"claim-of-{subject}"} if issuer else None,
    )


class Verifier:
    async def verify_token(self, token: str) -> AccessToken | None:
        return access_token(token) if token.count("~") == 4 else None


def identity(ctx: Context) -> dict[str, Any]:
    """Everything that tells one caller, or one request, from another."""
    token, task = get_access_token(), get_task_context()
    return {
        "token": None if token is None else token.model_dump(exclude_none=True),
        "scope": get_task_scope(),
        "request": ctx.request_id,
        "headers": None if ctx.headers is None else dict(ctx.headers),
        "session": get_task_session_id(),
        "task": None if task is None else task.key.client_task_id,
    }


def span() -> str | None:
    found = get_current_span().get_span_context()
    return f"{found.trace_id:032x}-{found.span_id:016x}" if found.is_valid else None


def caller_name(ctx: Context) -> str:
    token = get_access_token()
    return f"{'nobody' if token is None else token.client_id} with request {ctx.request_id}"


def build(  # noqa: C901 - many tools, none of them complex
    *, celery: Celery | None = None, settings: Settings | None = None, **options: Any
) -> TaskServer:
    """Make the server."""
    server = TaskServer("callers", task=True, celery=celery, settings=settings, log_level="INFO", **options)

    @server.tool()
    async def look(ctx: Context) -> dict[str, Any]:
        capabilities, here = ctx.client_capabilities, get_task_server()
        client = ctx.session.client_params
        return {
            **identity(ctx),
            "capabilities": None if capabilities is None else capabilities.model_dump(by_alias=True, exclude_none=True),
            "client": None if client is None else client.client_info.name,
            "meta": dict(ctx.request_context.meta or {}),
            "tenant": None if ctx.headers is None else ctx.headers.get("X-Tenant"),
            "span": span(),
            "server": None if here is None else here.name,
        }

    @server.tool()
    async def look_around(ctx: Context, pauses_ms: list[int]) -> dict[str, Any]:
        seen = [identity(ctx)]

        async def aside() -> None:
            await asyncio.sleep(0)
            seen.append(identity(ctx))

        for pause in pauses_ms:
            await asyncio.sleep(pause / 1000)
            seen.append(identity(ctx))
            await asyncio.create_task(aside())
        seen.append(await anyio.to_thread.run_sync(identity, ctx))
        return {"seen": seen}

    @server.tool()
    def look_around_sync(ctx: Context, pauses_ms: list[int]) -> dict[str, Any]:
        seen = [identity(ctx)]
        for pause in pauses_ms:
            time.sleep(pause / 1000)
            seen.append(identity(ctx))
        return {"seen": seen}

    @server.tool()
    async def outlive(ctx: Context) -> dict[str, Any]:
        before = identity(ctx)
        async with asyncio.timeout(HOLD_SECONDS):
            while get_access_token() is not None:  # noqa: ASYNC110 - time is what is waited for
                await asyncio.sleep(0.01)
        return {"before": before, "after": identity(ctx)}

    @server.tool()
    async def delegate(ctx: Context, generations: int) -> str:
        """Leaves the work to another task; gives its id, or says that nothing is left to do."""
        if generations == 0:
            return "done"
        arguments = {"generations": generations - 1}
        return (await server.call_tool("delegate", arguments, ctx, task_meta=TaskMeta())).task_id

    @server.tool()
    async def greet(name: Annotated[str, Resolve(caller_name)]) -> str:
        return f"Hello, {name}"

    @server.tool()
    async def keep(note: str, gate: str) -> str:
        async with asyncio.timeout(HOLD_SECONDS):
            while not Path(gate).exists():  # noqa: ASYNC110, ASYNC240 - the opener is another process
                await asyncio.sleep(0.01)
        return "kept"

    server.tool("park", task=TaskConfig(queue=NOBODYS_QUEUE))(keep)

    @server.tool()
    async def decline(note: str) -> str:
        raise ToolError("no")

    @server.tool()
    async def refuse(note: str) -> str:
        raise MCPError(-32050, "not on Sundays")

    return server


server = build()
guarded = build(
    token_verifier=Verifier(),
    auth=AuthSettings(issuer_url=AnyHttpUrl("https://one.example"), resource_server_url=None, required_scopes=["use"]),
)
