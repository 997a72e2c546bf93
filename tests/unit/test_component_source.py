"""The port for the server that owns the components, its ``MCPServer`` and another kind of server beside each other."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
from celery import Celery
from mcp.server import MCPServer
from mcp.server.mcpserver.prompts import Prompt
from mcp.server.mcpserver.prompts.base import PromptArgument
from mcp.shared.exceptions import MCPError
from mcp_types import InputRequiredResult, ToolAnnotations
from pydantic import AfterValidator

from mcp_celery import CeleryTasks, Settings, TaskConfig
from mcp_celery.components import declarations
from mcp_celery.components.declarations import DeclaredComponents
from mcp_celery.components.source import Component, ComponentRaised, JobRequest, RequestMeta
from mcp_celery.errors import ConfigurationError
from mcp_celery.keys import TaskType
from mcp_celery.server import mcp_server_source
from mcp_celery.server.celery_tasks import source_of, tasks_of
from mcp_celery.server.mcp_server_source import MCPServerSource
from mcp_celery.web import http_app
from tests.support.tiny_server import VERSION, TinyServer, TinySource

pytestmark = pytest.mark.anyio

OFF = TaskConfig.from_bool(False)
ON = TaskConfig()


@pytest.fixture
def server() -> MCPServer[Any]:
    server: MCPServer[Any] = MCPServer("notes")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True), meta={"shelf": 3})
    def read(page: int) -> str | InputRequiredResult:
        return f"page {page}"

    @server.tool()
    def write(text: str) -> None: ...

    @server.prompt()
    def summary(topic: str) -> str:
        return topic

    @server.resource("notes://today")
    def today() -> str:
        return "nothing"

    @server.resource("notes://{day}/text")
    def text(day: str) -> str:
        return day

    return server


@pytest.fixture
def tiny() -> TinyServer:
    tiny = TinyServer("tiny")

    @tiny.tool(task=ON)
    async def work(size: int) -> int:
        return size

    @tiny.tool(version="2")
    async def rest() -> None: ...

    @tiny.tool("rest", version="1", task=TaskConfig(queue="old"))
    async def rest_as_before() -> None: ...

    return tiny


async def quiet() -> None: ...


def refuse(_: str) -> str:
    """A validator with an answer of its own."""
    raise MCPError(-32001, "odd")


class Unhashable:
    """A function that can be no key."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, **topics: str) -> str:
        return self._function(**topics)


async def found(source: MCPServerSource, task_type: TaskType, identifier: str) -> Component:
    component = await source.find(task_type, identifier)
    assert component is not None
    return component


class TestMCPServer:
    async def test_components_are_found_by_their_declared_names(self, server: MCPServer[Any]) -> None:
        source = MCPServerSource(server)
        listed = [(one.task_type, one.identifier) for one in await source.components()]
        assert listed == [
            ("tool", "read"),
            ("tool", "write"),
            ("prompt", "summary"),
            ("resource", "notes://today"),
            ("resource", "notes://{day}/text"),
        ]
        assert (await found(source, "resource", "notes://today")).identifier == "notes://today"
        assert (await found(source, "resource", "notes://mon/text")).identifier == "notes://{day}/text"
        kinds: list[TaskType] = ["tool", "prompt", "resource"]
        assert [await source.find(kind, "x://y") for kind in kinds] == [None] * 3

    async def test_a_tool_says_what_its_declaration_says(self, server: MCPServer[Any]) -> None:
        source = MCPServerSource(server)
        read, write = await found(source, "tool", "read"), await found(source, "tool", "write")
        assert (read.may_be_repeated, read.returns_questions, read.can_ask_first, read.meta) == (
            True,
            True,
            True,
            {"shelf": 3},
        )
        assert (write.may_be_repeated, write.returns_questions, write.can_ask_first, write.meta) == (
            False,
            False,
            False,
            {},
        )
        assert read.declared_arguments({"page": 1, "more": 2}) == {"page": 1}
        assert "page" in (await read.refusal({"page": "one"}) or "")
        assert await read.refusal({"page": "1"}) is None

    async def test_each_component_has_the_schema_of_its_arguments(self, server: MCPServer[Any]) -> None:
        source = MCPServerSource(server)
        schemas = {one.identifier: one.input_schema for one in await source.components()}
        assert [sorted(schema.get("properties", {})) for schema in schemas.values()] == [
            ["page"],
            ["text"],
            ["topic"],
            [],
            ["day"],
        ]
        assert {one.version for one in await source.components()} == {None}
        for component in await source.components():
            again = await found(source, component.task_type, component.identifier.replace("{day}", "mon"))
            assert again.input_schema is component.input_schema, "its digest is made once"

    async def test_a_prompt_of_which_no_schema_can_be_made_says_what_it_declares(self) -> None:
        server: MCPServer[Any] = MCPServer("odd")

        def anything(**topics: str) -> str:
            return str(topics)

        arguments = [PromptArgument(name="topic", description=None)]
        prompt = Prompt(
            name="odd", title=None, description=None, fn=Unhashable(anything), arguments=arguments, context_kwarg=None
        )
        server.add_prompt(prompt)
        assert (await found(MCPServerSource(server), "prompt", "odd")).input_schema == {"topic": {"required": False}}

    async def test_the_port_has_tools_that_are_added_later(self, server: MCPServer[Any]) -> None:
        source = MCPServerSource(server)

        async def added(size: int) -> int:
            return size

        assert not source.has_tool("more")
        metadata = source.add_tool(added, "more", description="More.", annotations=None)
        assert source.has_tool("more")
        assert metadata.validate_arguments({"size": 2}) == {"size": 2}
        assert [one.name for one in await server.list_tools()] == ["read", "write", "more"]


class TestDeclarations:
    async def test_a_declaration_by_name_overrides_the_tools_own_and_that_the_default(self, tiny: TinyServer) -> None:
        own = DeclaredComponents(TinySource(tiny), {}, OFF)
        assert await own.that_run() == {("tool", "work"): ON, ("tool", "rest"): TaskConfig(queue="old")}
        assert await own.task_types() == {"tool"}
        named = DeclaredComponents(TinySource(tiny), {("tool", "work"): OFF, ("tool", "rest"): ON}, OFF)
        assert await named.that_run() == {("tool", "rest"): ON}

    async def test_a_version_has_a_declaration_of_its_own(self, tiny: TinyServer) -> None:
        own = DeclaredComponents(TinySource(tiny), {}, OFF)
        assert (await own.find("tool", "rest")).config == OFF
        assert (await own.find("tool", "rest", {VERSION: "1"})).config.queue == "old"
        assert await own.config("tool", "rest") == ("rest", OFF)

    async def test_the_configuration_of_existing_tasks_is_asked_for_once_in_a_while(
        self, tiny: TinyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []

        class Source(TinySource):
            async def components(self) -> Sequence[Component]:
                asked.append("all")
                return await super().components()

            async def find(
                self, task_type: TaskType, identifier: str, meta: RequestMeta | None = None
            ) -> Component | None:
                asked.append(identifier)
                return await super().find(task_type, identifier, meta)

        own = DeclaredComponents(Source(tiny), {}, OFF)
        for name in ("work", "work", "nothing", "nothing"):
            await own.config("tool", name)
        assert asked == ["all", "nothing", "nothing"]  # one client may not see what another one sees
        monkeypatch.setattr(declarations, "CONFIG_SECONDS", 0.0)
        later = DeclaredComponents(Source(tiny), {}, OFF)
        assert await later.config("tool", "work") == await later.config("tool", "work") == ("work", ON)
        assert asked[3:] == ["all", "all"]

    async def test_an_existing_task_needs_the_scopes_of_every_version_of_its_component(self, tiny: TinyServer) -> None:
        for version, scope in (("1", "read"), ("2", "write")):
            tiny.tool("doc", version=version, task=TaskConfig(required_scopes=[scope]))(quiet)
        own = DeclaredComponents(TinySource(tiny), {}, OFF)
        assert (await own.config("tool", "doc"))[1].required_scopes == ("read", "write")
        assert (await own.config("tool", "work"))[1].required_scopes == ()

    async def test_a_task_of_a_removed_component_needs_all_scopes_that_the_server_knows(
        self, tiny: TinyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(declarations, "CONFIG_SECONDS", 0.0)
        tiny.tool("doc", task=TaskConfig(required_scopes=["write"]))(quiet)
        own = DeclaredComponents(TinySource(tiny), {}, OFF)
        assert (await own.config("tool", "gone before"))[1].required_scopes == ("write",)
        tiny.tools.pop()
        assert (await own.config("tool", "doc"))[1].required_scopes == ("write",)

    async def test_each_version_has_a_fingerprint(self, tiny: TinyServer) -> None:
        own = DeclaredComponents(TinySource(tiny), {}, ON)
        newest = (await own.find("tool", "rest")).fingerprint
        older = (await own.find("tool", "rest", {VERSION: "1"})).fingerprint
        assert str(newest).startswith("2-")
        assert str(older).startswith("1-")
        assert (await own.find("tool", "nothing")).fingerprint is None
        run = {one.fingerprint: (one.key, one.config.queue) for one in await own.versions_that_run()}
        assert run[str(newest)] == (("tool", "rest"), None)
        assert run[str(older)] == (("tool", "rest"), "old")
        assert len(run) == 3

    async def test_a_version_may_be_declared(self, tiny: TinyServer) -> None:
        own = DeclaredComponents(TinySource(tiny), {("tool", "rest"): TaskConfig(version="2026.7")}, OFF)
        assert str((await own.find("tool", "rest")).fingerprint).startswith("2026.7-")
        assert {one.fingerprint[:7] for one in await own.versions_that_run() if one.key[1] == "rest"} == {"2026.7-"}

    @pytest.mark.parametrize(
        ("arguments", "accepts"),
        [({"size": 1}, True), ({"size": 1, "more": 2}, False), ({"size": "x"}, False), ({}, False)],
    )
    async def test_arguments_are_accepted_where_none_is_refused_or_ignored(
        self, tiny: TinyServer, arguments: dict[str, Any], accepts: bool
    ) -> None:
        own = DeclaredComponents(TinySource(tiny), {}, OFF)
        assert await (await own.find("tool", "work")).accepts(arguments) is accepts
        assert not await (await own.find("tool", "nothing")).accepts(arguments)

    async def test_a_validators_own_answer_is_no_acceptance(self, server: MCPServer[Any]) -> None:
        def check(value: Annotated[str, AfterValidator(refuse)]) -> None: ...

        server.add_tool(check)
        own = DeclaredComponents(MCPServerSource(server), {}, OFF)
        assert not await (await own.find("tool", "check")).accepts({"value": "x"})

    async def test_a_component_that_does_not_exist_is_refused_with_its_kind(self, tiny: TinyServer) -> None:
        own = DeclaredComponents(TinySource(tiny), {}, OFF)
        assert await (await own.find("prompt", "x")).refusal({}) == "Unknown prompt: x"
        assert await (await own.find("tool", "work")).refusal({"size": "x"}) == "work does not take size"


class TestTasks:
    async def test_another_kind_of_server_is_found_as_an_mcp_server_is(self, tiny: TinyServer) -> None:
        tasks = CeleryTasks(
            celery=Celery("x", backend="cache+memory://", set_as_current=False),
            settings=Settings.load(namespace="tiny"),
        )
        tasks.install(TinySource(tiny))
        assert tasks_of(tiny) is tasks
        assert source_of(tiny).server is tiny
        # Both in code that cannot await, although an event loop runs here.
        assert tasks.components().keys() == {("tool", "work"), ("tool", "rest")}
        assert tasks.config("tool", "work") == ("work", ON)
        assert tasks.register_jobs(Celery("worker", set_as_current=False)) == [
            "mcp.tiny.tool.rest",
            "mcp.tiny.tool.work",
        ]
        assert [getattr(one, "path", None) for one in http_app(tiny).routes] == ["/mcp", "/healthz", "/readyz"]
        with pytest.raises(ConfigurationError, match="the MCP server 'tiny' runs tasks already"):
            tasks.install(TinySource(tiny))

    async def test_another_kind_of_server_can_expose_jobs(self, tiny: TinyServer) -> None:
        app = Celery("shop", backend="cache+memory://", set_as_current=False)

        def sell(item: str) -> str:
            return item

        app.task(name="shop.sell", shared=False)(sell)
        tasks = CeleryTasks(celery=app, settings=Settings.load(namespace="tiny"))
        tasks.install(TinySource(tiny))
        tasks.expose("shop.sell", name="sell")
        assert tasks.components()["tool", "sell"].foreground == "worker"
        with pytest.raises(ConfigurationError, match="has a tool 'sell' already"):
            tasks.expose("shop.sell", name="sell")

    @pytest.mark.parametrize("thing", [None, [], {1}, "text", TinyServer("without tasks"), object()])
    def test_an_object_that_is_no_server_with_tasks_has_no_port(self, thing: object) -> None:
        with pytest.raises(ConfigurationError, match=f"a {type(thing).__name__} is not an MCP server"):
            source_of(thing)
        with pytest.raises(ConfigurationError, match="is not an MCP server"):
            http_app(thing)


def test_private_names_of_mcp_server_are_in_one_module() -> None:
    names = re.compile(
        r"\b(_tool_manager|_prompt_manager|_resource_manager|_lowlevel_server|_apply_extension|_token_verifier"
        r"|_install_extension_interceptor|_subscriptions\b|session_manager|_handle_request)\b"
    )
    package = Path(mcp_server_source.__file__).parent
    using = {one.name for one in package.rglob("*.py") if names.search(one.read_text(encoding="utf-8"))}
    assert using == {"mcp_server_source.py"}


def test_an_exception_that_celery_handles_is_no_result_also_as_a_cause() -> None:
    request: Any = JobRequest
    made: JobRequest = request(None, None, None, None, (ConnectionError,))
    wrapped = ValueError("the server's own")
    wrapped.__cause__ = ConnectionResetError("gone")
    with pytest.raises(ComponentRaised) as raised:
        made.require_result(wrapped)
    assert raised.value.reason is wrapped.__cause__
    made.require_result(ValueError("the component's"))


def test_the_port_is_asked_in_a_thread_where_a_loop_runs(server: MCPServer[Any]) -> None:
    async def ask() -> object:
        return tasks.components()

    tasks = CeleryTasks(tools={"write": True})
    tasks.install(server)
    assert asyncio.run(ask()) == tasks.components() == {("tool", "write"): ON}
