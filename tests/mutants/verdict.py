"""What became of a mutant, and which survivors are known to change nothing that anybody could see."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

EQUIVALENT: Final = Path(__file__).with_name("equivalent.toml")


@dataclass(frozen=True, order=True)
class Mutant:
    """One change of the package.

    Attributes:
        place: The function that is changed, or the patch's name.
        was: The lines that are changed, joined by single spaces; empty for a patch.
        becomes: What they are changed to.
    """

    place: str
    was: str = ""
    becomes: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.was}  ->  {self.becomes}" if self.was or self.becomes else self.place


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant.

    Attributes:
        group: Under which heading it is counted: a module, or the patches.
        mutant: Which one; of those that were killed the place is enough.
        killed: Whether a test failed.
        how: Which test failed, or why none did.
    """

    group: str
    mutant: Mutant
    killed: bool
    how: str


def equivalents() -> dict[Mutant, str]:
    """The mutants that no test can kill, and why."""
    listed: list[dict[str, str]] = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("mutant", [])
    return {Mutant(one["place"], one.get("was", ""), one.get("becomes", "")): one["why"] for one in listed}


def report(verdicts: Sequence[Verdict], console: Console) -> bool:
    """Print the score of each group, and the survivors.

    Returns:
        Whether each mutant was killed or is listed as equivalent, and no listed one was killed.
    """
    known = equivalents()
    survivors = [one for one in verdicts if not one.killed]
    unknown = [one for one in survivors if one.mutant not in known]
    table = Table("", "mutants", "killed", "equivalent", "survived", "score")
    for group in [*sorted({one.group for one in verdicts}), "all"]:
        members = [one for one in verdicts if group in {one.group, "all"}]
        killed = sum(one.killed for one in members)
        survived = sum(one in members for one in unknown)
        score = 100 * killed / (killed + survived) if killed + survived else 100
        row = [len(members), killed, len(members) - killed - survived, survived]
        table.add_row(group, *map(str, row), f"{score:.1f} %")
    console.print(table)
    for one in unknown:
        console.print(f"[bold]survived[/bold] ({escape(one.how)}) {escape(str(one.mutant))}", soft_wrap=True)
    stale = _stale(known, verdicts, {one.mutant for one in survivors})
    for mutant in stale:
        console.print(f"[bold]listed as equivalent, but no survivor[/bold] {escape(str(mutant))}", soft_wrap=True)
    return not unknown and not stale


def _stale(known: Iterable[Mutant], verdicts: Sequence[Verdict], survivors: set[Mutant]) -> list[Mutant]:
    """Listed mutants of places that were mutated in this run, that did not survive."""
    places = {one.mutant.place for one in verdicts}
    return sorted(one for one in known if one.place in places and one not in survivors)
