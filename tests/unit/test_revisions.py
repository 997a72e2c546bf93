"""Protocol revisions: one object for each, and no other module that tells them apart."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Final

import pytest
from mcp_types.version import KNOWN_PROTOCOL_VERSIONS

from mcp_celery.protocol.revision import TaskRevision
from mcp_celery.protocol.revisions import TASK_VERSIONS, revision_named
from tests.support.sources import modules_of_the_package

pytestmark = pytest.mark.xdist_group("sources")

OF_ONE_REVISION: Final = re.compile(r"/v\d{4}_\d\d_\d\d(/|\.py$)")
CHOOSING: Final = {"protocol/revisions.py", "protocol/additions.py", "client/revisions.py"}
"""The modules that name the revisions, and so change with a new one."""
USING: Final = {"fastmcp/extension.py", "fastmcp/routing.py"}
"""The modules that serve the private method by which 2025-11-25 creates tasks."""
NAMING_VERSIONS: Final = {*CHOOSING, "context.py", "testing/backend.py"}
"""The modules that give others a version: `testing` makes engines, `context` snapshots outside a request."""
VERSION: Final = re.compile(r"\d{4}-\d\d-\d\d")


def modules() -> Iterator[tuple[str, ast.Module]]:
    """The modules that are not of one revision, by their paths in the package."""
    for path, module in modules_of_the_package().items():
        if not OF_ONE_REVISION.search(f"/{path}"):
            yield path, module


def is_a_version(node: ast.AST) -> bool:
    """Whether an expression gives a version, by its name or its value."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and VERSION.fullmatch(node.value) is not None
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lower().endswith(("version", "versions"))


@pytest.mark.parametrize("version", KNOWN_PROTOCOL_VERSIONS)
def test_each_version_that_the_sdk_speaks_has_a_revision(version: str) -> None:
    revision = revision_named(version)
    assert revision.version == version
    assert isinstance(revision, TaskRevision) == (version in TASK_VERSIONS)


def test_the_versions_with_tasks_are_2025_11_25_and_2026_07_28() -> None:
    assert {"2025-11-25", "2026-07-28"} == TASK_VERSIONS


def test_a_version_of_a_later_release_has_no_tasks() -> None:
    assert not isinstance(revision_named("2099-01-01"), TaskRevision)


def test_no_other_module_compares_versions() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, module in modules()
        for node in ast.walk(module)
        if isinstance(node, ast.Compare) and not isinstance(node.ops[0], ast.Is | ast.IsNot)
        if any(is_a_version(side) for side in (node.left, *node.comparators))
    ]
    assert found == []


def test_no_other_module_names_a_version_or_takes_it_from_the_sdk() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, module in modules()
        if path not in NAMING_VERSIONS
        for node in ast.walk(module)
        if (isinstance(node, ast.ImportFrom) and node.module == "mcp_types.version")
        or (isinstance(node, ast.Constant) and is_a_version(node))
    ]
    assert found == []


def test_only_the_modules_that_choose_import_what_one_revision_has() -> None:
    found = {
        path
        for path, module in modules()
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and re.search(r"\.v\d{4}_\d\d_\d\d", node.module or "")
    }
    assert found == CHOOSING | USING
