"""The number of the format in which this release writes what other processes read.

Records, snapshots, stored results and the messages of jobs carry it. A release reads the formats up to its own, and
refuses a later one with a line that names both numbers. A worker stores a result in a format that the server which
created the task can read, so servers and workers may be upgraded in any order.

- 1: release 0.1.0, which wrote no number. A result is a JSON object inside Celery's own JSON.
- 2: a result is a JSON text, which no serializer of Celery looks into.
- 3: a result is sealed with ``MCP_CELERY_ENCRYPTION_KEYS``. Nothing else has this format.
"""

from __future__ import annotations

from typing import Final

FORMAT: Final = 2
UNNUMBERED: Final = 1
"""The format of stored data without a number."""
SEALED_RESULT: Final = 3
"""The format of a sealed result, the latest of those that results have."""
FORMAT_HEADER: Final = "mcp_celery_format"
"""The header of a job's message that holds the number."""


def is_readable(number: object, newest: int = FORMAT) -> bool:
    """Whether this release reads a format.

    Args:
        number: What was found.
        newest: The latest format that it reads of such things.
    """
    return isinstance(number, int) and UNNUMBERED <= number <= newest


class NewerFormatError(ValueError):
    """A later release wrote something that this one cannot read.

    Args:
        what: What was to be read.
        number: The format that it has.
        newest: The latest format that this release reads of such things.
    """

    def __init__(self, what: str, number: object, newest: int = FORMAT) -> None:
        super().__init__(f"{what} has format {number}; this release reads formats up to {newest}: upgrade it")
        self._arguments = what, number, newest

    def __reduce__(self) -> tuple[type[NewerFormatError], tuple[str, object, int]]:
        """Celery stores an exception under its own name only if it can be pickled."""
        return type(self), self._arguments
