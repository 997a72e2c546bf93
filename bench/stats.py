"""Medians and percentiles."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def ratio(values: Sequence[float], floors: Sequence[float]) -> float:
    """The median, over the rounds, of a value against the floor of the same round: noise that both saw cancels out."""
    return statistics.median(value / floor for value, floor in zip(values, floors, strict=True))
