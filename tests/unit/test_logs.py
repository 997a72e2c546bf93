"""Log lines: what no terminal may obey is escaped, and ids of anonymous tasks are shortened."""

from __future__ import annotations

import json
import logging
import sys
import unicodedata
from collections.abc import Generator
from typing import NoReturn

import pytest
from celery.utils.log import ColorFormatter

from mcp_celery.common.escaping import escaped
from mcp_celery.keys import build_task_key, celery_job_id
from mcp_celery.logs import LogFormatter, ShortIds, contain, shorten_ids_of_celery, shown_task_id, with_short_ids

ID = "q3Xw81abCDEFGHIJKLMNOPQRSTUVWXYZ_-abcdefghi"
BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def record(text: object, *args: object, **attributes: object) -> logging.LogRecord:
    made = logging.LogRecord("somebody", logging.ERROR, "file", 1, text, args, None)
    vars(made).update(attributes)
    return made


def fail(text: str) -> NoReturn:
    raise ValueError(text)


def test_every_control_and_bidi_control_is_escaped() -> None:
    everything = [chr(code) for code in range(sys.maxunicode + 1)]
    obeyed = [
        one
        for one in everything
        if unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(one) in BIDI
        or one in "\u061c\u200e\u200f\ufeff"
    ]
    assert [one for one in obeyed if escaped(one) == one] == []
    letters = [one for one in everything if one.isalnum()]
    assert [one for one in letters if escaped(one) != one] == []


def test_escaped_json_has_the_same_value() -> None:
    text = "".join(chr(code) for code in [*range(0x2100), *range(0xD800, 0xE000), 0xFEFF, 0x1F389, 0xE0041])
    told = escaped(json.dumps(text, ensure_ascii=False))
    assert json.loads(told) == json.loads(json.dumps(text))
    told.encode()


@pytest.fixture
def handler() -> Generator[logging.Handler]:
    """A handler of the logger `nobody`."""
    logger, found = logging.getLogger("nobody"), logging.StreamHandler()
    logger.addHandler(found)
    yield found
    logger.removeHandler(found)


class TestFormatter:
    def test_a_message_can_neither_move_the_cursor_nor_look_like_another(self) -> None:
        text = "a\x1b[2J\x9b31m\u202e\r\nlevel=ERROR\tb"
        line = LogFormatter("%(levelname)s %(message)s").format(record("said %s", text))
        assert line == "ERROR said a\\u001b[2J\\u009b31m\\u202e\\u000d\n    level=ERROR\tb"

    def test_a_traceback_keeps_its_lines(self) -> None:
        made = record("failed", stack_info="Stack:\n\x9b")
        try:
            fail(f"\x9b31m anon:{ID}:tool:x")
        except ValueError:
            made.exc_info = sys.exc_info()
        first, *_, last, head, stack = LogFormatter("%(message)s").format(made).split("\n")
        assert (first, head, stack) == ("failed", "Stack:", "\\u009b")
        assert last == "ValueError: \\u009b31m anon:q3Xw81ab…:tool:x"
        assert made.exc_text is None, "other handlers make their own"

    def test_other_formatters_keep_their_colours(self, handler: logging.Handler) -> None:
        handler.setFormatter(ColorFormatter("[%(levelname)s] %(message)s"))
        for _ in range(2):
            contain(logging.getLogger("nobody"))
        assert handler.format(record("said %d %s", 7, "\x9b31m")) == "\x1b[1;31m[ERROR] said 7 \\u009b31m\x1b[0m"

    def test_a_handler_without_a_formatter_escapes_controls_too(self, handler: logging.Handler) -> None:
        contain(logging.getLogger("nobody"))
        assert handler.format(record("\x9b")) == "\\u009b"

    def test_uvicorns_second_message_is_not_used(self, handler: logging.Handler) -> None:
        contain(logging.getLogger("nobody"))
        assert handler.format(record("%d", 7, color_message="\x1b[1m%d\x1b[0m")) == "7"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (build_task_key(None, ID, "tool", "x"), "anon:q3Xw81ab…:tool:x"),
        (celery_job_id(build_task_key(None, ID, "tool", "x"), 3), "anon:q3Xw81ab…:tool:x!3"),
        (f"mcp_celery:reports:task:anon:{ID}:events", "mcp_celery:reports:task:anon:q3Xw81ab…:events"),
        (f"['anon:{ID}:tool:x', 'anon:{ID}:tool:y']", "['anon:q3Xw81ab…:tool:x', 'anon:q3Xw81ab…:tool:y']"),
        (build_task_key("anon", ID, "tool", "x"), f"auth:anon:{ID}:tool:x"),
        ("anon:task456:tool:x", "anon:task456:tool:x"),
        (f"canon:{ID}", f"canon:{ID}"),
    ],
)
def test_ids_in_keys_are_shortened(text: str, shown: str) -> None:
    assert with_short_ids(text) == shown


def test_ids_are_shortened_where_they_are_the_right_to_read() -> None:
    assert shown_task_id(None, ID) == "q3Xw81ab…"
    assert shown_task_id("app|alice", ID) == ID
    assert shown_task_id(None, "task456") == "task456"


class TestCelerysLines:
    @pytest.fixture(autouse=True)
    def logger(self) -> Generator[None]:
        logger = logging.getLogger("celery.worker.strategy")
        before = [*logger.filters]
        yield
        logger.filters = before

    def test_arguments_are_shortened_and_the_template_stays(self) -> None:
        key = f"anon:{ID}:tool:x"
        named = record("Task %(name)s[%(id)s]", {"name": "mcp.x", "id": key, "n": 1})
        assert ShortIds().filter(named)
        assert (named.msg, named.getMessage()) == ("Task %(name)s[%(id)s]", "Task mcp.x[anon:q3Xw81ab…:tool:x]")
        placed = record("%s %d", key, 7)
        assert ShortIds().filter(placed)
        assert placed.getMessage() == "anon:q3Xw81ab…:tool:x 7"
        assert ShortIds().filter(record("nothing"))

    def test_the_filter_is_added_to_celerys_logger_once(self) -> None:
        shorten_ids_of_celery()
        shorten_ids_of_celery()
        assert sum(isinstance(one, ShortIds) for one in logging.getLogger("celery.worker.strategy").filters) == 1
