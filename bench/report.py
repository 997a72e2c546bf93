"""The table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.run import Findings, Row
from bench.systems import FLOOR, OURS, PEER


def number(value: float | None, unit: str = "") -> str:
    """A figure with three digits that count, and its unit."""
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def cells(row: Row) -> list[str]:
    """A line: what, the floor, ours, FastMCP, our figure, FastMCP's."""
    ours = row.figures.get(OURS)
    is_ratio = row.figure_unit == "×"
    return [
        row.what + (f" ({row.note})" if row.note else ""),
        number(row.values.get(FLOOR), row.unit),
        number(row.values.get(OURS), row.unit),
        number(row.values.get(PEER), row.unit),
        number(ours, "×") if is_ratio else "",
        number(row.figures.get(PEER), "×") if is_ratio else "",
    ]


HEADINGS = ("", FLOOR, OURS, PEER, "ours", "FastMCP's")


def show(console: Console, findings: Findings, title: str) -> None:
    """Print the table and the remarks."""
    table = Table(*HEADINGS, title=title)
    for row in findings.rows:
        table.add_row(*cells(row))
    console.print(table)
    for remark in findings.remarks:
        console.print(f"- {remark}", markup=False, highlight=False)
