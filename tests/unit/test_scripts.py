"""The texts of the Lua scripts."""

from __future__ import annotations

import re

import pytest

from mcp_celery.store.scripts import SCRIPTS, file_text, written

DEFINED = re.compile(r"^local function (\w+)\(", re.MULTILINE)


def test_a_script_has_the_functions_that_it_uses_and_those_that_these_use() -> None:
    texts = {"load": "return one()\n", "common": "local function one()\n  return two()\nend\n"}
    texts["bytes"] = "local function two()\n  return 2\nend\nlocal function three()\n  return 3\nend\n"
    script = written(lambda name: texts.get(name, ""))["load"]
    assert DEFINED.findall(script) == ["one", "two", "act"]


def test_a_name_in_a_comment_is_no_use() -> None:
    texts = {"load": "-- as `one`\nreturn 1\n", "common": "local function one()\n  return 1\nend\n"}
    assert DEFINED.findall(written(lambda name: texts.get(name, ""))["load"]) == ["act"]


def test_statements_are_kept_in_every_script() -> None:
    texts = {"declared": "local MORE = table.remove(ARGV)\n"}
    assert all(
        "local MORE = table.remove(ARGV)\n" in text for text in written(lambda name: texts.get(name, "")).values()
    )


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_script_defines_each_function_once_and_uses_each(name: str) -> None:
    defined = DEFINED.findall(SCRIPTS[name])
    assert len(defined) == len(set(defined))
    assert [one for one in defined if len(re.findall(rf"\b{one}\b", SCRIPTS[name])) == 1] == []
    assert file_text(name).strip().splitlines()[-1] in SCRIPTS[name]
