"""Rates in Celery's form: ``"10/m"``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MOST: Final = 10_000
"""The highest number of a rate, whose events are counted one by one."""
LEAST: Final = 0.01
LONGEST_MS: Final = 360_000_000
"""The longest window, of the least number an hour."""
EXPECTED: Final = f"expected a number from {LEAST:g} to {MOST}, or one with /s, /m or /h"
_RATE: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(?:/([smh]))?")
_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000}


@dataclass(frozen=True, slots=True)
class Rate:
    """How often something may happen.

    Attributes:
        number: How often in any window.
        window_ms: How long a window is.
    """

    number: int
    window_ms: int

    @classmethod
    def parse(cls, text: str | float) -> Rate:
        """Read a rate.

        >>> Rate.parse("10/m"), Rate.parse(5), Rate.parse("0.5/s")
        (Rate(number=10, window_ms=60000), Rate(number=5, window_ms=1000), Rate(number=1, window_ms=2000))

        Args:
            text: A number a second, or with ``/s``, ``/m`` or ``/h`` one a second, minute or hour. One that is not
                whole says how far apart two events are at least.

        Raises:
            ValueError: It has another form, is below :data:`LEAST`, or above :data:`MOST`.
        """
        found = _RATE.fullmatch(str(text))
        number = float(found[1]) if found else 0.0
        if found is None or not LEAST <= number <= MOST:
            raise ValueError(EXPECTED)
        window_ms = _UNITS_MS[found[2] or "s"]
        return cls(int(number), window_ms) if number.is_integer() else cls(1, max(round(window_ms / number), 1))
