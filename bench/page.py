"""``docs/performance.md`` and its plot. What stands outside the markers is written by hand and kept."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil

from bench import peer
from bench.figures import Measured
from bench.plot import svg
from bench.processes import ROOT
from bench.report import HEADINGS, cells, number
from bench.run import Options, Row
from bench.systems import OURS, PEER

PAGE: Final = ROOT / "docs" / "performance.md"
PLOT: Final = ROOT / "docs" / "img" / "performance.svg"
_PACKAGES: Final = ("mcp", "celery", "kombu", "redis", "uvicorn", "mcp-celery-backend")
_MARK: Final = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- bench:end -->)", re.DOTALL)
_BREAKDOWN: Final = " | "


def write(book: Mapping[str, Measured]) -> None:
    """Fill the parts of the page between markers, and draw the plot."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), book), encoding="utf-8")
    rows = [row for _, row in _rows(book)]
    PLOT.write_text(svg(rows, "mcp_celery and FastMCP 4, measured side by side"), encoding="utf-8")


def filled(text: str, book: Mapping[str, Measured]) -> str:
    """A page with the figures between its markers.

    Args:
        text: The page.
        book: The figures, by measure.
    """
    remarks = [(name, remark) for name, found in book.items() for remark in found.remarks]
    parts = {
        "run": _describe(book),
        "table": _table(HEADINGS, [[*cells(row), _only(name)] for name, row in _rows(book) if not row.sizing]),
        "sizing": _table(
            ("", OURS, PEER, "command"),
            [
                [row.what, *(number(row.values.get(one), row.unit) for one in (OURS, PEER)), _command(name)]
                for name, row in _rows(book)
                if row.sizing
            ],
        ),
        "remarks": "\n".join(f"- {_only(name)}: {remark}" for name, remark in remarks if _BREAKDOWN not in remark),
        "commands": _table(
            ("of", "purpose", "for each", "commands"),
            [remark.split(_BREAKDOWN) for _, remark in remarks if _BREAKDOWN in remark],
        ),
    }
    return _MARK.sub(lambda found: f"{found[1]}\n{parts[found[2]]}\n\n{found[3]}", text)


def _rows(book: Mapping[str, Measured]) -> Iterator[tuple[str, Row]]:
    return ((name, row) for name, found in book.items() for row in found.rows)


def _only(name: str) -> str:
    return f"`{name}`"


def _command(name: str) -> str:
    return f"`python -m bench --only {name}`"


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return "Not measured yet."
    rule = "|".join(["---", *["---:"] * (len(headings) - 1)])
    return "\n".join([f"| {' | '.join(headings)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])


def _describe(book: Mapping[str, Measured]) -> str:
    """Machines and versions, and the run of each measure."""
    headings = dict.fromkeys(heading for found in book.values() for heading in found.environment)
    lines: list[str] = []
    for heading in headings:
        measures: dict[str, list[str]] = {}
        for name, found in book.items():
            if (text := found.environment.get(heading)) is not None:
                measures.setdefault(text, []).append(name)
        for text, names in measures.items():
            of = f" ({', '.join(map(_only, names))})" if len(measures) > 1 else ""
            lines.append(f"- **{heading}**{of}: {text}")
    runs: dict[tuple[str, str, int, bool], list[str]] = {}
    for name, found in book.items():
        runs.setdefault((found.date, found.command, found.rounds, found.quick), []).append(name)
    for (date, command, rounds, quick), names in runs.items():
        took = ", ".join(_took(name, book[name]) for name in names)
        lines.append(
            f"- **{date}**: `{command}`, {rounds} rounds, medians. "
            + ("Few samples (`--quick`): the figures are rough. " if quick else "")
            + f"Measures, with seconds and the load average at their end: {took}."
        )
    return "\n".join(lines)


def _took(name: str, found: Measured) -> str:
    noted = [f"{found.seconds:.0f}"] if found.seconds is not None else []
    noted += [f"({found.load:.1f})"] if found.load is not None else []
    return " ".join([_only(name), *noted])


def environment(options: Options, store_version: str) -> dict[str, str]:
    """The machine and the versions, by heading; no name of a host, a user or a folder."""
    ours = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    concurrency = "its default" if options.concurrency is None else str(options.concurrency)
    lines = {
        "Machine": (
            f"{_processor()}, {os.cpu_count()} processors, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
            f"{platform.system()}, Python {platform.python_version()}."
        ),
        OURS: f"{ours}. Worker: one, pool `{options.pool}`, concurrency {concurrency}, unless a row names another.",
        "Store": f"{store_version}, one for each system, on a Unix socket, append-only file with `everysec`.",
    }
    if options.peer:
        theirs = ", ".join(f"{name} {found}" for name, found in peer.versions().items())
        lines[PEER] = (
            f"{theirs}. Its server, which is a worker as well, and one worker "
            "(`python -m fastmcp_tasks.worker_cli worker`), both with default settings."
        )
    return lines


def _processor() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return found[1].strip() if found else platform.machine()
