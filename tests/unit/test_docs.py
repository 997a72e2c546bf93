"""The documentation, held against the code: generated pages are current, Python blocks run, links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

import mcp_celery
from mcp_celery import errors

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```python(?: [^\n]*)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)]+)\)")
REPOSITORY: Final[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
IN_REPOSITORY: Final = (
    f"{REPOSITORY}/blob/main/",
    f"{REPOSITORY.replace('github.com', 'raw.githubusercontent.com')}/main/",
)
"""How links to files of the project begin."""


def name_of(page: Path) -> str:
    """Of a page, below the project's folder."""
    return str(page.relative_to(ROOT))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_of_the_pages_run(page: Path) -> None:
    for number, found in enumerate(BLOCK.finditer(page.read_text()), 1):
        if "fastmcp" in found.group(1) and importlib.util.find_spec("fastmcp") is None:
            continue  # an optional extra, without which `make test-lowest` runs
        exec(compile(found.group(1), f"<block {number} of {page.name}>", "exec"), {"__name__": "documentation"})


@pytest.mark.parametrize("page", ["configuration.md", "commands.md", "errors.md"])
def test_generated_pages_are_current(page: str) -> None:
    if page == "commands.md" and f"\nclick=={version('click')} " not in (ROOT / "constraints.txt").read_text():
        pytest.skip("another click than the pinned one, which makes the page, may lay out help in another way")
    pages = load(ROOT / "docs" / "generate.py").PAGES
    assert (ROOT / "docs" / page).read_text() == pages[page](), "run `make docs`"


def files_linked_from(page: Path) -> list[tuple[Path, str]]:
    """The files of this project to which a page links, each with the anchor or nothing."""
    found: list[tuple[Path, str]] = []
    for target in LINK.findall(page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith(IN_REPOSITORY):
            found.append((ROOT / path.removeprefix(IN_REPOSITORY[0]).removeprefix(IN_REPOSITORY[1]), anchor))
        elif not re.match(r"\w+:", path):
            found.append((page.parent / path if path else page, anchor))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    linked = files_linked_from(page)
    assert [str(path) for path, _ in linked if not path.exists()] == []
    assert [(path.name, anchor) for path, anchor in linked if anchor and anchor not in anchors_of(path)] == []


def test_links_of_the_readme_are_absolute_since_pypi_shows_it_too() -> None:
    assert [link for link in LINK.findall((ROOT / "README.md").read_text()) if not link.startswith("https://")] == []


def test_links_to_the_repository_have_the_address_of_pyproject() -> None:
    files = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "pyproject.toml", ROOT / "zensical.toml"]
    link = re.compile(r"https://(?:github|raw\.githubusercontent)\.com/([\w.-]*mcp[-_]celery[\w.-]*/[\w.-]+)")
    wrong = {
        file.name: {*link.findall(file.read_text())} - {REPOSITORY.removeprefix("https://github.com/")}
        for file in files
    }
    assert {name: found for name, found in wrong.items() if found} == {}, "run `make docs`"
    assert tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["repo_url"] == REPOSITORY


def test_make_docs_gives_links_the_address_of_pyproject() -> None:
    addressed = load(ROOT / "docs" / "generate.py").addressed
    other = REPOSITORY.replace("https://github.com/", "https://github.com/another-owner-of-")
    raw = other.replace("github.com", "raw.githubusercontent.com")
    assert addressed(f"[a]({other}/blob/main/a) {raw}/main/b https://github.com/celery/celery") == (
        f"[a]({REPOSITORY}/blob/main/a) {IN_REPOSITORY[1]}b https://github.com/celery/celery"
    )


def pages_of(navigation: list[dict[str, Any]]) -> list[str]:
    """The pages of the site's navigation, in its order."""
    found: list[str] = []
    for entry in navigation:
        for value in entry.values():
            found += [value] if isinstance(value, str) else pages_of(value)
    return found


def test_each_page_has_its_place_in_the_sites_navigation() -> None:
    navigation = pages_of(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])
    docs = ROOT / "docs"
    assert sorted(navigation) == sorted(str(page.relative_to(docs)) for page in docs.rglob("*.md"))


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title)).lower().replace(" ", "-") for title in titles
    }


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
        tests = re.findall(r"`tests/[\w/]+(?:\.py)?(?:::\w+)*`|`make (?:test|soak|conf|release)[\w-]*`", shown)
        assert tests or shown in ("test", "untested"), row


def test_pages_name_only_targets_that_there_are() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, page.name


def test_the_page_of_the_api_has_each_public_name() -> None:
    """`McpCeleryError` and `Settings` have pages of their own, to which it links."""
    page = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in mcp_celery.__all__ if f"mcp_celery.{name}" not in page] == []
    for package in ("client", "fastmcp", "testing", "web", "keys"):
        assert f"\n::: mcp_celery.{package}\n" in page


@pytest.mark.parametrize("page", ["operations.md", "log-events.md", "troubleshooting.md", "errors.md"])
def test_pages_of_limits_name_each_limit(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    classes = [one for one in vars(errors).values() if isinstance(one, type)]
    limits = {one.limit for one in classes if issubclass(one, errors.LimitExceededError) and "limit" in vars(one)}
    assert len(limits) > 8
    assert [limit for limit in limits if f"`{limit}`" not in text] == []


def test_the_page_of_log_events_names_each_event() -> None:
    events = set(re.findall(r'"(task\.\w+)"', (ROOT / "mcp_celery" / "audit.py").read_text()))
    text = (ROOT / "docs" / "log-events.md").read_text()
    assert len(events) > 4
    assert [event for event in events if f"| `{event}` |" not in text] == []
