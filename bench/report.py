"""The table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.run import Findings, Row, Target
from bench.systems import FLOOR, OURS, PEER

_STYLES = {"stretch": "green", "must": "yellow", "missed": "red"}


def number(value: float | None, unit: str = "") -> str:
    """A figure with three digits that count, and its unit."""
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def bound(target: Target | None, which: str, unit: str) -> str:
    """A column of a target."""
    if target is None:
        return ""
    value: float = getattr(target, which)
    sign = ("≥" if target.at_least else "≤") if value or target.at_least else "="
    return f"{sign} {number(value, unit)}" if sign != "=" else number(value, unit)


def cells(row: Row) -> list[str]:
    """A line: what, the floor, ours, FastMCP, our figure, FastMCP's, must, stretch, and which target is reached."""
    ours = row.figures.get(OURS)
    verdict = "" if row.target is None or ours is None else row.target.verdict(ours)
    is_ratio = row.figure_unit == "×"
    return [
        row.what + (f" ({row.note})" if row.note else ""),
        number(row.values.get(FLOOR), row.unit),
        number(row.values.get(OURS), row.unit),
        number(row.values.get(PEER), row.unit),
        number(ours, "×") if is_ratio else "",
        number(row.figures.get(PEER), "×") if is_ratio else "",
        bound(row.target, "must", row.figure_unit),
        bound(row.target, "stretch", row.figure_unit),
        verdict,
    ]


HEADINGS = ("", FLOOR, OURS, PEER, "ours", "FastMCP's", "must", "stretch", "reached")


def show(console: Console, findings: Findings, title: str) -> None:
    """Print the table and the remarks."""
    table = Table(*HEADINGS, title=title)
    for row in findings.rows:
        *rest, verdict = cells(row)
        table.add_row(*rest, f"[{_STYLES[verdict]}]{verdict}[/]" if verdict else "")
    console.print(table)
    for remark in findings.remarks:
        console.print(f"- {remark}", markup=False, highlight=False)
