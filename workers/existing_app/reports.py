"""The shop's jobs, which its web pages start and its beat repeats."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from celery import chord

from workers.existing_app.celery import app

MONTH_SECONDS = 0.1
"""The work of a month, which stands for a query that takes its time."""


def orders_of(year: int, month: int) -> int:
    """How many orders a month had."""
    time.sleep(MONTH_SECONDS)
    return (year * 31 + month * 17) % 100


def summary(year: int, months: list[int], done: Callable[[int], None] = lambda _: None) -> dict[str, int]:
    """The report itself, a plain function: a web page, a job and a tool may call it.

    Args:
        year: Of the report.
        months: Which of its months.
        done: Told how many months are ready.
    """
    orders = 0
    for count, month in enumerate(months, 1):
        orders += orders_of(year, month)
        done(count)
    return {"year": year, "months": len(months), "orders": orders}


@app.task(bind=True)
def build(self: Any, year: int) -> dict[str, int]:
    """Build a year's report, and report each month by Celery's own state."""
    months = list(range(1, 13))
    return summary(
        year, months, lambda count: self.update_state(state="PROGRESS", meta={"done": count, "total": len(months)})
    )


@app.task
def build_quarter(year: int, quarter: int) -> dict[str, int]:
    """Build a quarter's report."""
    first = 3 * (quarter - 1) + 1
    return summary(year, list(range(first, first + 3)))


@app.task
def add_up(quarters: list[dict[str, int]]) -> dict[str, int]:
    """Make a year of its quarters."""
    return {
        "year": quarters[0]["year"],
        "months": sum(one["months"] for one in quarters),
        "orders": sum(one["orders"] for one in quarters),
    }


def build_by_quarters(year: int) -> Any:
    """A year's report as four jobs side by side and one that adds them up: a chord."""
    return chord([build_quarter.s(year, quarter) for quarter in (1, 2, 3, 4)], add_up.s())
