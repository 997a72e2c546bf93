"""Where the record of a message is that a store does not have."""

from __future__ import annotations

import pytest

from mcp_celery.engine.store_mark import StoreMark, Whereabouts, whereabouts

ONE, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.mark.parametrize(
    ("ours", "where"),
    [
        (None, "elsewhere"),
        (StoreMark(ONE, 50), "here"),
        (StoreMark(ONE, 150), "here"),
        (StoreMark(OTHER, 50), "elsewhere"),
        (StoreMark(OTHER, 150), "lost"),
    ],
)
def test_a_store_that_was_made_after_the_message_has_lost_its_record(
    ours: StoreMark | None, where: Whereabouts
) -> None:
    assert whereabouts(StoreMark(ONE, 100), ours) == where


def test_a_mark_is_read_as_it_is_written() -> None:
    mark = StoreMark.new()
    assert StoreMark.parse(str(mark)) == mark


@pytest.mark.parametrize(
    "text", [None, 7, b"x", "", "@1", ONE, f"{ONE}@", f"{ONE}@-1", f"{ONE}@1\n", f"{ONE}@{'1' * 99}"]
)
def test_other_texts_are_no_mark(text: object) -> None:
    assert StoreMark.parse(text) is None
