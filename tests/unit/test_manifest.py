"""The manifest of behaviours and the tests that show them, held against each other."""

from __future__ import annotations

import ast
import functools
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from tests.conftest import SMOKE_ONLY

TESTS = Path(__file__).parents[1]
MANIFEST: dict[str, dict[str, Any]] = tomllib.loads((TESTS / "manifest.toml").read_text())


pytestmark = pytest.mark.xdist_group("manifest")  # so that one process parses the tests, once

QUICKLY = 2 / 3
"""The part of the manifest that `make test` shows."""


@dataclass(frozen=True)
class Function:
    """A test function, read from the source.

    Attributes:
        name: Its file and its name.
        shows: The lines of the manifest that it shows.
        marks: The other marks of pytest that it or its class or its module has.
    """

    name: str
    shows: frozenset[str]
    marks: frozenset[str]

    @property
    def is_quick(self) -> bool:
        """Whether `make test` runs it."""
        if "smoke" in self.marks:
            return True
        return "slow" not in self.marks and self.name.partition("/")[0] not in SMOKE_ONLY


def marks_of(nodes: Iterable[ast.expr]) -> Iterator[ast.Attribute | ast.Call]:
    """What stands in decorators, or in a module's `pytestmark`, as `pytest.mark.NAME` or `pytest.mark.NAME(…)`."""
    for outer in nodes:
        for node in ast.walk(outer):
            called = node.func if isinstance(node, ast.Call) else node
            if isinstance(called, ast.Attribute) and ast.unparse(called.value) == "pytest.mark":
                yield cast("ast.Attribute | ast.Call", node)


def functions_of(path: Path) -> Iterator[Function]:
    module = ast.parse(path.read_text())
    everywhere = [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    for owner in (module, *(node for node in module.body if isinstance(node, ast.ClassDef))):
        around = [*everywhere, *(owner.decorator_list if isinstance(owner, ast.ClassDef) else [])]
        for node in owner.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                marks = list(marks_of([*around, *node.decorator_list]))
                calls = [mark for mark in marks if isinstance(mark, ast.Call)]
                shows = {
                    str(ast.literal_eval(line))
                    for mark in calls
                    if ast.unparse(mark.func) == "pytest.mark.shows"
                    for line in mark.args
                }
                names = {mark.attr for mark in marks if isinstance(mark, ast.Attribute)}
                yield Function(f"{path.relative_to(TESTS)}::{node.name}", frozenset(shows), frozenset(names))


@functools.cache
def all_functions() -> list[Function]:
    """The tests of each module. Not made at import: each test process imports this module."""
    return [function for path in sorted(TESTS.rglob("test_*.py")) for function in functions_of(path)]


def lines_shown(functions: Iterable[Function]) -> set[str]:
    return {line for function in functions for line in function.shows}


def test_every_line_is_shown_by_a_test_or_owned_by_an_open_issue() -> None:
    shown = lines_shown(function for function in all_functions() if "long" not in function.marks)
    assert [line for line, entry in MANIFEST.items() if line not in shown and "open" not in entry] == []


def test_most_lines_are_shown_by_the_tests_of_every_change() -> None:
    shown = lines_shown(function for function in all_functions() if function.is_quick)
    assert len(shown) >= QUICKLY * len(MANIFEST), f"only {len(shown)} of {len(MANIFEST)}: mark tests as `smoke`"


def test_each_module_of_slow_tests_has_an_example_that_every_change_runs() -> None:
    slow = [*TESTS.glob("integration/test_*.py"), *TESTS.glob("pool/test_*.py")]
    assert [path.name for path in slow if "pytest.mark.smoke" not in path.read_text()] == []


def test_tests_show_only_lines_that_there_are() -> None:
    assert lines_shown(all_functions()) <= MANIFEST.keys()


def test_every_test_of_the_wire_names_a_line() -> None:
    wire = ("acceptance/test_tasks_", "acceptance/test_transports")
    assert [
        function.name for function in all_functions() if function.name.startswith(wire) and not function.shows
    ] == []


def test_every_line_says_what_it_asks() -> None:
    assert all(entry["behaviour"] for entry in MANIFEST.values())
