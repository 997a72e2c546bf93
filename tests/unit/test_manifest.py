"""The manifest of behaviours and the tests that show them, held against each other."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
MANIFEST: dict[str, dict[str, Any]] = tomllib.loads((TESTS / "manifest.toml").read_text())


def test_functions() -> Iterator[tuple[str, list[str]]]:
    """Every test function of the tree with the lines that it shows, read from the source."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield f"{path.relative_to(TESTS)}::{node.name}", list(lines_shown(node))


test_functions.__test__ = False  # type: ignore[attr-defined] - it lists tests, and is none


def lines_shown(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.shows":
            for argument in decorator.args:
                assert isinstance(argument, ast.Constant)
                yield str(argument.value)


def test_every_line_is_shown_by_a_test_or_owned_by_an_open_issue() -> None:
    shown = {line for _, lines in test_functions() for line in lines}
    assert [line for line, entry in MANIFEST.items() if line not in shown and "open" not in entry] == []


def test_tests_show_only_lines_that_there_are() -> None:
    unknown = [(name, line) for name, lines in test_functions() for line in lines if line not in MANIFEST]
    assert unknown == []


def test_every_test_of_the_wire_names_a_line() -> None:
    wire = ("acceptance/test_tasks_", "acceptance/test_transports")
    assert [name for name, lines in test_functions() if name.startswith(wire) and not lines] == []


def test_every_line_says_what_it_asks() -> None:
    assert all(entry["behaviour"] for entry in MANIFEST.values())
