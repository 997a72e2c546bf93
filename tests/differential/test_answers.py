"""A call that runs as a task, or on a worker, is answered as a plain server of the SDK answers it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final, cast

import pytest

from tests.differential.differences import DIFFERENCES, shortened
from tests.differential.generator import generated
from tests.differential.running import Finding, examined
from tests.differential.shrinking import shrunk
from tests.differential.tools import Tool, kept
from tests.support.nodes import Pool

pytestmark = pytest.mark.anyio

EXAMPLES: Final = Path(__file__).with_name("examples.toml")
DOCUMENTED: Final = Path(__file__).parents[2] / "docs" / "protocol.md"
MODULE: Final = 100
QUICK: Final = 20
WIRE: Final = 2_000
"""Characters of an answer that a failing test shows."""
SHRUNK: Final = 6
"""How many of the tools that fail are made smaller: all together, in about a minute."""


@pytest.mark.each_pool
@pytest.mark.smoke
@pytest.mark.shows("C18")
async def test_kept_examples_and_generated_tools_answer_as_plain_calls(
    pool: Pool, request: pytest.FixtureRequest
) -> None:
    count = QUICK if request.config.getoption("--quick") else MODULE
    await require_the_same([*kept(EXAMPLES), *generated(seed_of(request, 0), count)], pool)


@pytest.mark.long
@pytest.mark.each_pool
@pytest.mark.parametrize("nth", range(1, 11))
async def test_many_generated_tools_answer_as_plain_calls(nth: int, pool: Pool, request: pytest.FixtureRequest) -> None:
    """Other tools in each run; `--differential-seed`, or pytest-randomly's own, repeats them."""
    first = seed_of(request, cast(int, request.config.getoption("randomly_seed", 0)))
    await require_the_same(generated(first + nth, MODULE), pool)


def seed_of(request: pytest.FixtureRequest, default: int) -> int:
    """The seed that was asked for."""
    asked = cast("int | None", request.config.getoption("--differential-seed"))
    return default if asked is None else asked


async def require_the_same(tools: Sequence[Tool], pool: Pool) -> None:
    """Fail with the smallest tools that are answered otherwise, if there are any."""
    last: dict[Tool, Finding] = {}

    async def examine(tools: Sequence[Tool]) -> dict[Tool, str]:
        found = {finding.tool: finding for finding in reversed(await examined(tools, pool))}
        last.update(found)
        return {tool: finding.kind for tool, finding in found.items()}

    failed = await examine(tools)
    if not failed:
        return
    smallest = await shrunk(dict(islice(failed.items(), SHRUNK)), examine)
    told = "\n\n".join(_told(last[tool]) for tool in dict.fromkeys(smallest))
    pytest.fail(
        f"{len(failed)} of {len(tools)} tools are answered otherwise on the {pool} pool. The smallest that are (to "
        f"keep one as an example, add it to tests/differential/{EXAMPLES.name} and say why):\n\n{told}",
        pytrace=False,
    )


def _told(finding: Finding) -> str:
    return (
        f"{finding.tool}\n# {finding.revision}, {finding.way}: {finding.difference}\n"
        f"#   plain server: {shortened(finding.plain, WIRE)}\n#   with tasks:   {shortened(finding.other, WIRE)}"
    )


def test_each_documented_difference_is_in_the_documentation() -> None:
    page = " ".join(DOCUMENTED.read_text().split())
    assert [one.text for one in DIFFERENCES if f"{one.text} | {one.reason}" not in page] == []


def test_a_seed_makes_the_same_tools() -> None:
    assert generated(7, 50) == generated(7, 50) != generated(8, 50)
