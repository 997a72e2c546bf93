"""The package and its documentation name the actor: a short list of constructions does not occur."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = sorted(
    path
    for folder in ("mcp_celery", "workers", "config", "bench")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.suffix != ".pyc"
)
PAGES: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Procfile", ROOT / "Makefile"])
BANNED: Final = re.compile(
    r"\b(?:who(?:m)?ever|nobody|somebody|anybody|everybody|none\s+of\s+ours|(?:is|are|was|were|be|been|being)\s+told)\b",
    re.IGNORECASE,
)
QUOTED: Final = re.compile(r"`[^`\n]*`|“[^”\n]*”|^>.*$", re.MULTILINE)
"""What is quoted: code and the words of others."""


def banned_in(text: str) -> list[str]:
    """The lines with one of the constructions outside quotations; it may cross the end of a line."""
    unquoted = QUOTED.sub(lambda found: " " * len(found[0]), text)
    joined = re.sub(r"\n[ \t]*(?:#|--)?[ \t]*", lambda found: " " * len(found[0]), unquoted)
    lines = text.splitlines()
    return [lines[text.count("\n", 0, found.start())].strip() for found in BANNED.finditer(joined)]


def test_constructions_that_name_no_actor_do_not_occur() -> None:
    found = {str(path.relative_to(ROOT)): banned_in(path.read_text(errors="replace")) for path in [*SOURCES, *PAGES]}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_banned_constructions_are_found_across_lines_and_not_in_quotations() -> None:
    text = "The client is\n    # told. Nobody\nwaits for `nobody`, and “whoever” is a quotation."
    assert banned_in(text) == ["The client is", "# told. Nobody"]
