"""An outage is logged when it begins and when it ends."""

from __future__ import annotations

import logging

import pytest

from mcp_celery.common.outage import MOST_KINDS, Outage


@pytest.fixture
def outage(caplog: pytest.LogCaptureFixture) -> Outage:
    caplog.set_level(logging.INFO, __name__)
    return Outage("the store (SETTING)", logging.getLogger(__name__))


def test_an_outage_is_logged_once_and_its_end_once(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    outage.ended()
    for _ in range(3):
        outage.began("ConnectionError", "refused")
    assert outage.is_on
    outage.began("TimeoutError", "silent")
    for _ in range(3):
        outage.ended()
    assert not outage.is_on
    outage.began("ConnectionError", "refused again")
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("WARNING", "the store (SETTING) failed: refused"),
        ("WARNING", "the store (SETTING) failed: silent"),
        ("INFO", "the store (SETTING) answers again"),
        ("WARNING", "the store (SETTING) failed: refused again"),
    ]


def test_changing_failures_do_not_fill_the_log(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(10 * MOST_KINDS):
        outage.began(f"Error{number}", "new")
    assert len(caplog.records) == MOST_KINDS
