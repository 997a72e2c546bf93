"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Level = Literal["ok", "warning", "error"]
Area = Literal["settings", "sentinels", "cluster", "store", "broker", "results", "workers"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Attributes:
        area: What was checked.
        level: ``error``: tasks fail or do not run. ``warning``: they may, or will some day.
        text: What was found, in one sentence without secrets.
        setting: What to change; None where nothing is to be changed.
    """

    area: Area
    level: Level
    text: str
    setting: str | None = None


@dataclass(slots=True)
class Findings:
    """Collects what the checks of one area find.

    Args:
        area: What is checked.
        found: The findings.
    """

    area: Area
    found: list[Finding] = field(default_factory=list[Finding])

    def ok(self, text: str) -> None:
        """Note what is in order."""
        self.found.append(Finding(self.area, "ok", text))

    def warning(self, text: str, setting: str | None) -> None:
        """Note what may go wrong."""
        self.found.append(Finding(self.area, "warning", text, setting))

    def error(self, text: str, setting: str | None) -> None:
        """Note what is wrong."""
        self.found.append(Finding(self.area, "error", text, setting))


def skew_of(findings: Findings, whose: str, skew_ms: int) -> None:
    """Judge by how much a clock differs.

    Args:
        findings: Gets what is to be said.
        whose: Whose clock it is.
        skew_ms: By how much it differs from this machine's at least.
    """
    if abs(skew_ms) >= 60_000:
        level = findings.error
    elif abs(skew_ms) >= 2_000:
        level = findings.warning
    else:
        return
    level(f"the clock of {whose} differs by {abs(skew_ms) / 1000:.0f} s from this machine's", "the clocks (NTP)")
