"""The documentation, held against the code: generated pages are current, Python blocks run, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ANCHORED = re.compile(r"\]\((?!https?:|mailto:)([^)#]*)#([^)]+)\)")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)[^)]*\)")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path) -> None:
    for number, found in enumerate(BLOCK.finditer(page.read_text()), 1):
        if "fastmcp" in found.group(1) and importlib.util.find_spec("fastmcp") is None:
            continue  # an optional extra, without which `make test-lowest` runs
        exec(compile(found.group(1), f"<block {number} of {page.name}>", "exec"), {"__name__": "documentation"})


def test_the_configuration_page_is_current() -> None:
    generated = load(ROOT / "docs" / "generate.py").text()
    assert (ROOT / "docs" / "configuration.md").read_text() == generated, "run `make docs`"


def test_links_lead_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in LINK.findall(page.read_text())]
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title)).lower().replace(" ", "-") for title in titles
    }


def test_anchors_lead_to_headings() -> None:
    for page in PAGES:
        for target, anchor in ANCHORED.findall(page.read_text()):
            other = page.parent / target if target else page
            if other.suffix == ".md" and other.exists():
                assert anchor in anchors_of(other), f"{page.name}: {target}#{anchor}"


def test_tests_that_pages_name_are_there() -> None:
    for page in PAGES:
        for path, names in re.findall(r"`(tests/[\w/]+\.py)((?:::\w+)*)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
            text = (ROOT / path).read_text()
            assert [one for one in names.split("::") if one not in text] == [], f"{page.name}: {path}{names}"


def test_each_row_of_the_support_tables_names_its_test() -> None:
    rows = [line for line in (ROOT / "docs" / "support.md").read_text().splitlines() if line.startswith("| ")]
    assert rows
    for row in rows:
        *_, shown = (cell.strip() for cell in row.strip("|").split("|"))
        tests = re.findall(r"`tests/[\w/]+(?:\.py)?(?:::\w+)*`|`make (?:test|soak|conf)[\w-]*`", shown)
        assert tests or shown in ("test", "untested"), row


def test_pages_name_only_targets_that_there_are() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, page.name
