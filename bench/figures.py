"""``bench/figures.json``: what the last written run of each measure found, from which the page is made.

A run replaces the measures that it took and keeps the others, so a page may be made of several runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from bench.processes import ROOT
from bench.run import Row

FIGURES: Final = ROOT / "bench" / "figures.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one measure found, and in which run.

    Attributes:
        command: The run's command line.
        date: Its day, as ``2026-11-30``.
        rounds: How often the systems took turns.
        quick: Whether there were few samples.
        seconds: How long the measure took, None where that was not noted.
        load: The machine's load average at its end, None where that was not noted.
        environment: Machine, versions and store, by heading.
        rows: Lines of the table.
        remarks: What stands below it.
    """

    command: str
    date: str
    rounds: int
    quick: bool
    seconds: float | None
    load: float | None
    environment: Mapping[str, str]
    rows: Sequence[Row]
    remarks: Sequence[str]


_BOOK: Final = TypeAdapter(dict[str, Measured])


def load(path: Path = FIGURES) -> dict[str, Measured]:
    """Read what is noted, by measure; nothing where there is no file."""
    return _BOOK.validate_json(path.read_bytes()) if path.exists() else {}


def note(name: str, measured: Measured, order: Iterable[str], path: Path = FIGURES) -> dict[str, Measured]:
    """Replace one measure's figures and keep those of the others.

    Args:
        name: The measure.
        measured: What it found.
        order: The names of all measures, in the order of the page; figures of others are dropped.
        path: The file.

    Returns:
        All figures, in that order.
    """
    known = {**load(path), name: measured}
    book = {one: known[one] for one in order if one in known}
    path.write_bytes(_BOOK.dump_json(book, indent=1) + b"\n")
    return book
