"""``docs/performance.md`` and its plot. What stands outside the markers is written by hand and kept."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

import psutil

from bench import peer
from bench.plot import svg
from bench.processes import ROOT
from bench.report import HEADINGS, cells
from bench.run import Findings, Options
from mcp_celery.embedded import find_store_binary

PAGE: Final = ROOT / "docs" / "performance.md"
PLOT: Final = ROOT / "docs" / "img" / "performance.svg"
_PACKAGES: Final = ("mcp", "celery", "kombu", "redis", "uvicorn", "mcp-celery-backend")
_MARK: Final = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- bench:end -->)", re.DOTALL)
_BREAKDOWN: Final = " | "


def write(findings: Findings, options: Options, command: str, store_version: str) -> None:
    """Fill the parts of the page between markers, and draw the plot."""
    parts = {
        "run": _describe(options, command, store_version),
        "table": _table(HEADINGS, [cells(row) for row in findings.rows]),
        "remarks": "\n".join(f"- {remark}" for remark in findings.remarks if _BREAKDOWN not in remark),
        "commands": _table(
            ("of", "purpose", "for each", "commands"),
            [remark.split(_BREAKDOWN) for remark in findings.remarks if _BREAKDOWN in remark],
        ),
    }
    text = PAGE.read_text(encoding="utf-8")
    filled = _MARK.sub(lambda found: f"{found[1]}\n{parts[found[2]]}\n\n{found[3]}", text)
    PAGE.write_text(filled, encoding="utf-8")
    PLOT.write_text(svg(findings.rows, "mcp_celery and FastMCP 4, measured side by side"), encoding="utf-8")


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return "Not measured in this run."
    rule = "|".join(["---", *["---:"] * (len(headings) - 1)])
    return "\n".join([f"| {' | '.join(headings)} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)])


def _describe(options: Options, command: str, store_version: str) -> str:
    """The machine, the command and the versions; no name of a host, a user or a folder."""
    ours = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    concurrency = "its default" if options.concurrency is None else str(options.concurrency)
    lines = [
        f"- **Command**: `{command}` on {datetime.now(UTC).date().isoformat()}; {options.rounds} rounds, medians"
        + (", with few samples (`--quick`): the figures are rough." if options.quick else "."),
        (
            f"- **Machine**: {_processor()}, {os.cpu_count()} processors, "
            f"{psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}, "
            f"Python {platform.python_version()}; load average at the end {os.getloadavg()[0]:.1f}."
        ),
        f"- **mcp_celery**: {ours}. Worker: one, pool `{options.pool}`, concurrency {concurrency}.",
        f"- **Store**: {store_version}, one for each system, on a Unix socket, append-only file with `everysec`.",
    ]
    if options.peer:
        theirs = ", ".join(f"{name} {found}" for name, found in peer.versions().items())
        lines.append(
            f"- **FastMCP 4**: {theirs}. Its server, which is a worker as well, and one worker "
            "(`python -m fastmcp_tasks.worker_cli worker`), both with default settings."
        )
    return "\n".join(lines)


def _processor() -> str:
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def store_version(info: object) -> str:
    """Name and version of a store, of its ``INFO server``."""
    found = cast("dict[str, Any]", info)
    if "valkey_version" in found:
        return f"Valkey {found['valkey_version']}"
    return f"{'Redis' if 'redis' in find_store_binary().name else 'Valkey'} {found['redis_version']}"
