"""What the tools and jobs did: lines of a file, which no crash of a process loses."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Final

NOTES_VARIABLE: Final = "SOAK_NOTES"


def note(what: str, number: int) -> None:
    """Append a line, in one write, so that lines of many processes do not mix."""
    file = os.open(os.environ[NOTES_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{what} {number} {time.time():.3f}\n".encode())
    finally:
        os.close(file)


class Notes:
    """The lines of the file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._times: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        for line in path.read_text().splitlines():
            what, number, at = line.split()
            self._times[what, int(number)].append(float(at))

    def times(self, what: str, number: int) -> list[float]:
        """When something was noted of a call, in seconds since the epoch."""
        return self._times.get((what, number), [])

    def count(self, what: str, number: int) -> int:
        """How often something was noted of a call."""
        return len(self.times(what, number))
