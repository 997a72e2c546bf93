"""The table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from bench.run import Findings, Row
from bench.systems import FLOOR, OURS, PEER, PLAIN


def number(value: float | None, unit: str = "") -> str:
    """A figure with three digits that count, and its unit."""
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def cells(row: Row) -> list[str]:
    """A line: what, the floor, plain Celery, ours, FastMCP, our figure, FastMCP's."""
    ours = row.figures.get(OURS)
    is_ratio = row.figure_unit == "×"
    return [
        row.what + (f" ({row.note})" if row.note else ""),
        *(number(row.values.get(name), row.unit) for name in (FLOOR, PLAIN, OURS, PEER)),
        number(ours, "×") if is_ratio else "",
        number(row.figures.get(PEER), "×") if is_ratio else "",
    ]


HEADINGS = ("", FLOOR, PLAIN, OURS, PEER, "ours", "FastMCP's", "`--only`")


def show(console: Console, found: Mapping[str, Findings], title: str) -> None:
    """Print the table and the remarks.

    Args:
        console: Where.
        found: What was found, by measure.
        title: Of the table.
    """
    table = Table(*HEADINGS, title=title)
    for name, findings in found.items():
        for row in findings.rows:
            table.add_row(*cells(row), name)
    console.print(table)
    for name, findings in found.items():
        for remark in findings.remarks:
            console.print(f"- {name}: {remark}", markup=False, highlight=False)
