"""What the doctor makes of clocks that differ."""

from __future__ import annotations

import pytest

from mcp_celery.operate.doctor.findings import Finding, Findings, skew_of
from mcp_celery.operate.doctor.store import outside

FIX = "the clocks (NTP)"


@pytest.mark.parametrize(
    ("theirs", "skew_ms"), [(1_000, 0), (1_500, 0), (2_000, 0), (999, -1), (2_001, 1), (63_000, 61_000)]
)
def test_a_clock_differs_by_what_lies_outside_the_time_in_which_it_was_read(theirs: int, skew_ms: int) -> None:
    assert outside(theirs, 1_000, 2_000) == skew_ms


def test_a_clock_that_differs_by_less_than_two_seconds_is_in_order() -> None:
    findings = Findings("store")
    for skew_ms in (0, 1_999, -1_999):
        skew_of(findings, "Redis", skew_ms)
    assert findings.found == []


@pytest.mark.parametrize(
    ("skew_ms", "level", "seconds"),
    [
        (2_000, "warning", 2),
        (-2_000, "warning", 2),
        (59_999, "warning", 60),
        (60_000, "error", 60),
        (-90_000, "error", 90),
    ],
)
def test_how_much_a_clock_differs_decides_how_bad_it_is(skew_ms: int, level: str, seconds: int) -> None:
    findings = Findings("workers")
    skew_of(findings, "the worker a@b", skew_ms)
    text = f"the clock of the worker a@b differs by {seconds} s from this machine's"
    (found,) = findings.found
    assert (found.area, found.level, found.text, found.setting) == ("workers", level, text, FIX)
    assert isinstance(found, Finding)
