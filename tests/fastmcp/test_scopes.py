"""Two users of one OAuth client never share a task, whichever of FastMCP's verifiers their tokens go through."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any

import httpx2
import pytest

pytest.importorskip("fastmcp", reason="FastMCP is not installed: pip install 'mcp-celery-backend[fastmcp]'")

from fastmcp import Context, FastMCP
from fastmcp.server.auth import AccessToken, AuthProvider, MultiAuth, TokenVerifier, require_scopes
from fastmcp.server.auth.providers.introspection import IntrospectionTokenVerifier
from fastmcp.server.auth.providers.jwt import JWTVerifier, RSAKeyPair, StaticTokenVerifier
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext
from fastmcp.server.transforms.search import BM25SearchTransform
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolRequestParams
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from mcp_celery.components import declarations
from mcp_celery.fastmcp import TaskConfig, TasksExtension
from tests.fastmcp.conftest import Deploy, served, shared_with
from tests.support.deployment import Deployment
from tests.support.servers.fastmcp_tools import build
from tests.support.session import session_over
from tests.support.wire import JSON, Wire, follow

pytestmark = pytest.mark.anyio

CLIENT = "one-app"
ISSUER = "https://issuer.example"
USERS = {"alice": ["read"], "bob": ["read", "admin"]}
KEYS = RSAKeyPair.generate()

Tokens = Mapping[str, str]


def jwt(user: str) -> str:
    return KEYS.create_token(
        subject=user, issuer=ISSUER, scopes=USERS[user], additional_claims={"client_id": CLIENT, "azp": CLIENT}
    )


def claims_of(user: str) -> dict[str, Any]:
    return {"client_id": CLIENT, "sub": user, "scopes": USERS[user]}


class InClaimsOnly(TokenVerifier):
    """A verifier that names the subject only in the claims."""

    async def verify_token(self, token: str) -> AccessToken | None:
        if token not in USERS:
            return None
        return AccessToken(token=token, client_id=CLIENT, scopes=USERS[token], claims={"sub": token})


async def introspect(request: Request) -> JSONResponse:
    """An authorization server's answer about a token, which is a user's name."""
    user = str((await request.form())["token"])
    scope = " ".join(USERS.get(user, []))
    return JSONResponse({"active": user in USERS, "client_id": CLIENT, "sub": user, "scope": scope})


@pytest.fixture(scope="module")
def deployment(deploy: Deploy) -> Generator[Deployment]:
    with deploy("fastmcp_tools") as found:
        yield found


@pytest.fixture
async def introspection_url() -> AsyncGenerator[str]:
    app = Starlette(routes=[Route("/introspect", introspect, methods=["POST"])])
    async with served(app, "/introspect") as url:
        yield url


def verifier_of(kind: str, introspection_url: str) -> tuple[AuthProvider, Callable[[str], str]]:
    """A verifier, and what makes a user's token for it."""
    names: Callable[[str], str] = lambda user: user  # noqa: E731 - as `jwt`
    verifiers: dict[str, tuple[Any, Callable[[str], str]]] = {
        "jwt": (JWTVerifier(public_key=KEYS.public_key, issuer=ISSUER), jwt),
        "static": (StaticTokenVerifier({user: claims_of(user) for user in USERS}), names),
        "introspection": (
            IntrospectionTokenVerifier(introspection_url=introspection_url, client_id="rs", client_secret="secret"),
            names,
        ),
        "in claims only": (InClaimsOnly(), names),
    }
    if kind.startswith("multi: "):
        verifier, token_of = verifiers[kind.removeprefix("multi: ")]
        refusing = StaticTokenVerifier({"nobody": {"client_id": "nobody", "scopes": []}})
        return MultiAuth(verifiers=[refusing, verifier]), token_of
    return verifiers[kind]


@pytest.fixture(params=["jwt", "static", "introspection", "in claims only", "multi: jwt", "multi: in claims only"])
async def guarded(
    request: pytest.FixtureRequest, deployment: Deployment, introspection_url: str
) -> AsyncGenerator[tuple[str, Tokens]]:
    """The URL of a server that verifies tokens, and each user's token."""
    verifier, token_of = verifier_of(request.param, introspection_url)
    server = build(verifier, **shared_with(deployment))
    async with served(server.http_app(path="/mcp"), "/mcp") as url:
        yield url, {user: token_of(user) for user in USERS}


class Renames(Middleware):
    """Lets the tool ``purge`` serve calls of ``alias``."""

    async def on_call_tool(
        self, context: MiddlewareContext[CallToolRequestParams], call_next: CallNext[CallToolRequestParams, Any]
    ) -> Any:
        if context.message.name == "alias":
            context.message.name = "purge"
        return await call_next(context)


def guarded_by_scopes() -> FastMCP[Any]:
    """A server of which one tool requires a scope, and others lead to it."""
    verifier = StaticTokenVerifier({user: claims_of(user) for user in USERS})
    server: FastMCP[Any] = FastMCP("scopes", auth=verifier, middleware=[Renames()], transforms=[BM25SearchTransform()])
    server.add_extension(TasksExtension(in_process=True))

    @server.tool(task=TaskConfig(required_scopes=["admin"]))
    async def purge() -> str:
        return "purged"

    @server.tool
    async def alias() -> str:
        return "unreachable"

    @server.tool
    async def indirect(ctx: Context) -> Any:
        return await ctx.fastmcp.call_tool("purge")

    return server


WAYS_TO_PURGE: list[tuple[str, JSON]] = [
    ("purge", {}),
    ("alias", {}),
    ("indirect", {}),
    ("call_tool", {"name": "purge"}),
]


@pytest.mark.parametrize(("tool", "arguments"), WAYS_TO_PURGE)
async def test_no_way_to_a_tool_goes_round_its_scopes(tool: str, arguments: JSON) -> None:
    async with served(guarded_by_scopes().http_app(path="/mcp"), "/mcp") as url:
        for extension in (True, False):
            async with Wire(url, token="alice", extension=extension) as alice:
                refused = (await alice.call(tool, **arguments)).message
            assert "needs a token with the scopes admin" in str(refused), refused
            assert "result" not in refused or refused["result"]["isError"]
            async with Wire(url, token="bob", extension=extension) as bob:
                done = (await bob.call(tool, **arguments)).result
                if "taskId" in done:
                    done = (await follow(bob, done["taskId"]))[-1]["result"]
            assert done["content"][0]["text"] == "purged"


async def test_a_task_needs_its_scopes_also_where_the_caller_does_not_see_the_tool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(declarations, "CONFIG_SECONDS", 0.0)
    users = {"with": ["secret"], "without": []}
    claims = {user: {"client_id": CLIENT, "sub": "alice", "scopes": scopes} for user, scopes in users.items()}
    server: FastMCP[Any] = FastMCP("hidden", auth=StaticTokenVerifier(claims))
    server.add_extension(TasksExtension(in_process=True))

    @server.tool(auth=require_scopes("secret"), task=TaskConfig(required_scopes=["secret"]))
    async def hidden() -> str:
        return "secret"

    @server.tool("off", task=TaskConfig(required_scopes=["secret"]))
    async def switched_off() -> str:
        return "secret"

    async with (
        served(server.http_app(path="/mcp"), "/mcp") as url,
        Wire(url, token="with") as owner,
        Wire(url, token="without") as other,
    ):
        tasks = [(await owner.create(tool))["taskId"] for tool in ("hidden", "off")]
        server.disable(names={"off"})
        for task_id in tasks:
            assert (await follow(owner, task_id))[-1]["status"] == "completed"
            assert (await other.ask("tasks/get", {"taskId": task_id})).error["code"] == -32602


@pytest.mark.smoke
async def test_users_of_one_client_share_no_task(guarded: tuple[str, Tokens]) -> None:
    url, tokens = guarded
    async with Wire(url, token=tokens["alice"]) as alice, Wire(url, token=tokens["bob"]) as bob:
        task_id = (await alice.create("who"))["taskId"]
        task = (await follow(alice, task_id))[-1]
        assert task["result"]["structuredContent"] == {"sub": "alice", "scopes": ["read"], "token": ""}
        for method in ("tasks/get", "tasks/cancel"):
            refused = await bob.ask(method, {"taskId": task_id})
            assert (refused.error["code"], "not found" in refused.error["message"].lower()) == (-32602, True)
        assert (await alice.get(task_id))["status"] == "completed"
        assert "admin" in str((await alice.call("admin")).result)
        assert (await alice.call("admin")).result["isError"]
        task = (await follow(bob, (await bob.create("admin"))["taskId"]))[-1]
        assert task["result"]["structuredContent"] == {"result": "admin"}


async def test_users_of_one_client_share_no_session_and_no_list(guarded: tuple[str, Tokens]) -> None:
    url, tokens = guarded

    def client(user: str) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(headers={"authorization": f"Bearer {tokens[user]}"}, timeout=60)

    opened: list[str] = []

    async def note(response: httpx2.Response) -> None:
        opened.extend(response.headers.get_list("mcp-session-id"))

    async with client("alice") as as_alice, client("bob") as as_bob:
        as_alice.event_hooks["response"].append(note)
        async with (
            session_over(streamable_http_client(url, http_client=as_alice)) as alice,
            session_over(streamable_http_client(url, http_client=as_bob)) as bob,
        ):
            task_id = (await alice.create("who"))["taskId"]
            assert (await alice.result(task_id)).result["structuredContent"]["sub"] == "alice"
            assert task_id in [task["taskId"] for task in await alice.listed()]
            assert task_id not in [task["taskId"] for task in await bob.listed()]
            assert (await bob.result(task_id)).error["code"] == -32602
            headers = {"mcp-session-id": opened[0], "accept": "text/event-stream"}
            assert (await as_bob.get(url, headers=headers)).status_code == 404
