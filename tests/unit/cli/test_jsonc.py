"""Setting one member of a JSON file, and nothing else of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_celery.cli.clients.jsonc import JsonFileError, JsonText

ENTRY = {"command": "x", "args": ["a // b", "c"]}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(st.text(), VALUES, max_size=4)
INDENTS = st.sampled_from([None, 2, 4, "\t"])


def set_in(text: str) -> str:
    return JsonText(text).with_entry("servers", "mine", ENTRY)


@given(DOCUMENTS, st.none() | DOCUMENTS, INDENTS, st.booleans())
def test_the_rest_of_a_document_stays_unchanged(
    document: dict[str, Any], section: dict[str, Any] | None, indent: Any, crlf: bool
) -> None:
    document.pop("servers", None)
    if section is not None:
        document["servers"] = section
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    # Lone surrogates can be in no file.
    text = text.encode(errors="replace").decode().replace("\n", "\r\n" if crlf else "\n")
    wanted = json.loads(text)
    wanted.setdefault("servers", {})["mine"] = ENTRY
    assert json.loads(set_in(text)) == wanted
    assert set_in(set_in(text)) == set_in(text)


COMMENTED = """\
// Servers of this project, see https://x.example/*
{
    "inputs": [1, 2,], /* "servers": {} */
    "servers": {
        "a": {"url": "http://x//y"}, // "mine" is not here
        // the end of them
    },
}
"""


def test_comments_and_trailing_commas_stay() -> None:
    assert set_in(COMMENTED) == COMMENTED.replace(
        "        // the end of them\n",
        """\
        // the end of them
        "mine": {
            "command": "x",
            "args": [
                "a // b",
                "c"
            ]
        }
""",
    )


def test_an_entry_of_that_name_is_replaced_alone() -> None:
    text = COMMENTED.replace('"a"', '"mine"')
    changed = set_in(text)
    before, after = text.index('{"url"'), text.index(', // "mine"')
    assert changed.startswith(text[:before])
    assert changed.endswith(text[after:])
    assert JsonText(changed).document["servers"]["mine"] == ENTRY


def test_a_comment_behind_the_last_member_stays_with_it() -> None:
    text = '{\n  "servers": {\n    "a": 1 // first\n  }\n}\n'
    assert set_in(text).startswith('{\n  "servers": {\n    "a": 1, // first\n    "mine": {\n      "command": "x",\n')


def test_a_missing_section_is_added() -> None:
    for text in ("", " \n", "{}"):
        assert JsonText(set_in(text)).document == {"servers": {"mine": ENTRY}}
    assert set_in("").splitlines()[:3] == ["{", '  "servers": {', '    "mine": {']


def test_lines_end_as_they_did() -> None:
    changed = set_in('{\r\n  "servers": {}\r\n}\r\n')
    assert changed.count("\r\n") == changed.count("\n")


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('{\n  "servers": {\n    "a": nothing\n  }\n}', 3, "not JSON"),
        ('{\n  "a": 1,,\n}', 2, "not JSON"),
        ('// two\n/* lines\n*/ {"a": /* 1 }', 3, "not JSON"),
        ('{\n\n "a": "x\n"}', 3, "not JSON"),
        ("{} {}", 1, "not JSON"),
        ('{"servers": { /* none */ , }}', 1, "not JSON"),
        ("[]", 1, "not a JSON object"),
        ("[" * 100_000, 1, "too deeply nested"),
        ('{\n\n  "servers": []\n}', 3, '"servers" is not an object'),
    ],
)
def test_a_document_that_cannot_be_changed_is_refused_with_its_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(JsonFileError) as refused:
        set_in(text)
    assert refused.value.line == line
    assert problem in refused.value.problem
