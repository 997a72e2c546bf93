"""How long the client waits before it asks a server again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

JITTER: Final = 0.25
LONGEST_BACK_OFF_SECONDS: Final = 30.0
"""Nothing is asked later than this, and the jitter, for backing off alone."""


def spread(seconds: float) -> float:
    """A pause of at least this length and up to twice as long, so that those who were refused together come apart."""
    return seconds * random.uniform(1, 2)  # noqa: S311 - it keeps no secret


def jittered(seconds: float) -> float:
    """A pause of at least this length and up to a quarter more, so that many clients do not come back at once."""
    return seconds * random.uniform(1, 1 + JITTER)  # noqa: S311 - it keeps no secret


def growing_pauses(first_seconds: float) -> Iterator[float]:
    """Pauses that double up to the longest, each up to a quarter longer by chance."""
    pause = first_seconds
    while True:
        yield jittered(pause)
        pause = min(2 * pause, LONGEST_BACK_OFF_SECONDS)
