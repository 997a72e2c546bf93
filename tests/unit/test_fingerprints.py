"""What changes the fingerprint of a component, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from mcp.server import MCPServer
from pydantic import BaseModel, Field

from mcp_celery.components import fingerprint as module
from mcp_celery.components.fingerprint import fingerprint_of
from mcp_celery.keys import TaskType
from mcp_celery.server.mcp_server_source import MCPServerSource

pytestmark = pytest.mark.anyio

Function = Callable[..., Any]


def of_schema(**schema: Any) -> str:
    return fingerprint_of("tool", "add", None, schema)


async def of_tool(function: Function) -> str:
    server: MCPServer[Any] = MCPServer("shop")
    server.add_tool(function, "sell", description="Sell.")
    return await of_component(server, "tool", "sell")


async def of_component(server: MCPServer[Any], task_type: TaskType, identifier: str) -> str:
    found = await MCPServerSource(server).find(task_type, identifier)
    assert found is not None
    return fingerprint_of(found.task_type, found.identifier, found.version, found.input_schema)


def before() -> Function:
    def sell(count: int, region: str = "eu") -> str:
        return f"{count} in {region}"

    return sell


def documented() -> Function:
    async def sell(
        count: Annotated[int, Field(title="Number", description="How many.", examples=[3])], region: str = "eu"
    ) -> str:
        """Sell so many, by other means."""
        return f"{region}: {count}"

    return sell


def reordered() -> Function:
    def sell(*, region: str = "eu", count: int) -> str:
        return f"{count} in {region}"

    return sell


def added() -> Function:
    def sell(count: int, region: str = "eu", note: str = "") -> str:
        return f"{count} in {region}{note}"

    return sell


def removed() -> Function:
    def sell(count: int) -> str:
        return f"{count}"

    return sell


def renamed() -> Function:
    def sell(number: int, region: str = "eu") -> str:
        return f"{number} in {region}"

    return sell


def retyped() -> Function:
    def sell(count: float, region: str = "eu") -> str:
        return f"{count} in {region}"

    return sell


def bounded() -> Function:
    def sell(count: Annotated[int, Field(gt=0)], region: str = "eu") -> str:
        return f"{count} in {region}"

    return sell


def chosen() -> Function:
    def sell(count: int, region: Literal["eu", "us"] = "eu") -> str:
        return f"{count} in {region}"

    return sell


def defaulted() -> Function:
    def sell(count: int, region: str = "us") -> str:
        return f"{count} in {region}"

    return sell


def required() -> Function:
    def sell(count: int, region: str) -> str:
        return f"{count} in {region}"

    return sell


@pytest.mark.parametrize("change", [documented, reordered])
async def test_functions_with_the_same_arguments_have_the_same_fingerprint(change: Callable[[], Function]) -> None:
    assert await of_tool(before()) == await of_tool(change())


@pytest.mark.parametrize("change", [added, removed, renamed, retyped, bounded, chosen, defaulted, required])
async def test_functions_with_other_arguments_have_another_fingerprint(change: Callable[[], Function]) -> None:
    assert await of_tool(before()) != await of_tool(change())


class Item(BaseModel):
    """Something to sell."""

    title: str
    price: float = Field(default=1.0, description="In euros.")


async def test_a_change_inside_a_model_changes_the_fingerprint() -> None:
    def model(**changes: Any) -> Function:
        fields: dict[str, Any] = {"title": str, "price": Annotated[float, Field(default=1.0)], **changes}
        item = type("Item", (BaseModel,), {"__annotations__": fields, "__module__": __name__})

        def sell(item: Any) -> str:
            return str(item)

        sell.__annotations__["item"] = item
        return sell

    def plain(item: Item) -> str:
        return str(item)

    assert await of_tool(plain) == await of_tool(model())
    assert await of_tool(plain) != await of_tool(model(note=str))
    assert await of_tool(plain) != await of_tool(model(title=int))


async def test_types_and_defaults_of_a_prompt_are_in_its_fingerprint() -> None:
    def server(prompt: Function) -> MCPServer[Any]:
        made: MCPServer[Any] = MCPServer("shop")
        made.prompt("plan", description="Plan.")(prompt)
        return made

    def plan(topic: str, depth: int = 1) -> str:
        return topic * depth

    def deeper(topic: str, depth: int = 2) -> str:
        return topic * depth

    def longer(topic: str, depth: float = 1) -> str:
        return f"{topic}{depth}"

    found = [await of_component(server(one), "prompt", "plan") for one in (plan, deeper, longer)]
    assert len(set(found)) == 3


async def test_a_resource_counts_by_its_uri_and_a_template_by_its_parameters_too() -> None:
    def server(function: Function, uri: str) -> MCPServer[Any]:
        made: MCPServer[Any] = MCPServer("shop")
        made.resource(uri)(function)
        return made

    def day(day: str) -> str:
        return day

    def number(day: int) -> str:
        return str(day)

    def today() -> str:
        return "today"

    assert await of_component(server(today, "a://x"), "resource", "a://x") != await of_component(
        server(today, "a://y"), "resource", "a://y"
    )
    assert await of_component(server(day, "a://{day}"), "resource", "a://1") != await of_component(
        server(number, "a://{day}"), "resource", "a://1"
    )


def test_kind_name_and_version_are_in_the_fingerprint() -> None:
    schema: dict[str, Any] = {}
    kinds: list[TaskType] = ["tool", "prompt"]
    found = {fingerprint_of(kind, name, version, schema) for kind in kinds for name in "ab" for version in (None, "1")}
    assert len(found) == 8


@pytest.mark.parametrize(("version", "shown"), [("1.2+b", "1.2+b-"), ("v/1 ü", "v_1__-"), ("x" * 99, "x" * 40 + "-")])
def test_a_version_is_shown_as_far_as_it_is_harmless(version: str, shown: str) -> None:
    assert fingerprint_of("tool", "add", version, {}).startswith(shown)


def test_arguments_that_are_named_like_schema_keywords_count() -> None:
    assert of_schema(properties={"title": {"type": "string"}}) != of_schema(properties={})
    assert of_schema(properties={"default": {"title": "D", "type": "string"}}) == of_schema(
        properties={"default": {"type": "string"}}
    )
    assert of_schema(properties={"required": {"type": "string"}}) != of_schema(properties={"required": {}})


def test_values_are_compared_as_they_are() -> None:
    one, other = {"title": "a"}, {"title": "b"}
    assert of_schema(properties={"x": {"default": one}}) != of_schema(properties={"x": {"default": other}})
    assert of_schema(properties={"x": {"enum": [one]}}) != of_schema(properties={"x": {"enum": [other]}})
    assert of_schema(anyOf=[{"title": "a", "type": "string"}]) == of_schema(anyOf=[{"type": "string"}])


def test_the_order_of_required_arguments_does_not_count() -> None:
    assert of_schema(required=["a", "b"]) == of_schema(required=["b", "a"])
    assert of_schema(required=["a"]) != of_schema(required=["b"])


def test_a_fingerprint_is_short_and_the_same_in_each_process() -> None:
    assert of_schema(properties={"a": {"type": "integer"}}) == "dc52f2a34103"


def test_malformed_schemas_have_a_fingerprint_too() -> None:
    assert len(of_schema(default=object, properties=[1], required="x", title="\ud800", const="\ud800")) == 12


def test_the_number_of_remembered_fingerprints_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_KNOWN", 3)
    monkeypatch.setattr(module, "_known", {})
    schemas: list[dict[str, Any]] = [{"const": number} for number in range(10)]
    found = [fingerprint_of("tool", "add", None, schema) for schema in schemas]
    assert len(set(found)) == 10
    assert [fingerprint_of("tool", "add", None, schema) for schema in schemas] == found
