"""Tools are made smaller without servers, so that what a failing test shows is short."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.differential.generator import generated
from tests.differential.shrinking import candidates, shrunk
from tests.differential.tools import Tool, kept

pytestmark = [pytest.mark.anyio, pytest.mark.smoke]

LARGE = Tool(
    """
async def tool(*, ctx: Context, a: list[int] = [1, 2], b: str) -> dict[str, Any]:
    await ctx.report_progress(Decimal('0.5'), 10, 'text')
    await ctx.info('x')
    return {'a': [1, Point(x=Decimal('1'))], 'b': 'y' * 100}
""",
    '{"a": [1, 2, 3], "b": {"d": [null]}}',
    structured_output=True,
)


async def test_shrinking_leaves_only_what_makes_the_example_fail() -> None:
    async def examine(tools: Sequence[Tool]) -> dict[Tool, str]:
        return {tool: "x" for tool in tools if "Point(" in tool.source and "ctx.info" in tool.source}

    (smallest,) = await shrunk({LARGE: "x"}, examine)
    assert smallest.source.splitlines() == ["def tool():", "    ctx.info", "    return Point()"]
    assert (smallest.arguments, smallest.structured_output) == ("{}", None)


async def test_several_tools_are_made_smaller_together() -> None:
    modules: list[Sequence[Tool]] = []

    async def examine(tools: Sequence[Tool]) -> dict[Tool, str]:
        modules.append(tools)
        return {tool: "one" if "Decimal" in tool.source else "two" for tool in tools if "'c'" not in str(tool.call())}

    first, second = await shrunk(
        {LARGE: "one", Tool("def tool(*, b):\n    return b", '{"b": {"d": 1}}'): "two"}, examine
    )
    assert first.source == "def tool():\n    Decimal"
    assert second == Tool("def tool():\n    return 0")
    assert max(map(len, modules)) <= 120


def test_what_is_generated_is_a_function() -> None:
    assert {tool.function.name for tool in generated(4, 2_000)} == {"tool"}


def test_candidates_are_smaller_and_none_comes_twice() -> None:
    for tool in generated(3, 30):
        found = list(candidates(tool))
        assert len(set(found)) == len(found)
        assert all(one.complexity < tool.complexity for one in found)


def test_an_example_is_kept_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "examples.toml"
    tools = [LARGE, *generated(5, 200)]
    path.write_text("\n\n".join(map(str, tools)))
    described = [[(one.text, one.arguments, one.structured_output) for one in some] for some in (kept(path), tools)]
    assert described[0] == described[1]
