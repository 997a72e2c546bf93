"""The number of the form in which this release writes what other processes read: snapshots and stored results.

A release reads the forms up to its own. A server writes the number into the snapshot of each task, and a worker stores
the result in a form that this server can read, so servers and workers may be upgraded in any order.

- 1: release 0.1.0, which wrote no number. A result is a JSON object inside Celery's own JSON.
- 2: a result is a JSON text, which no serializer of Celery looks into.
"""

from __future__ import annotations

from typing import Final

FORMAT: Final = 2
UNNUMBERED: Final = 1
"""The form of what has no number."""


def is_readable(number: object) -> bool:
    """Whether this release reads a form."""
    return isinstance(number, int) and UNNUMBERED <= number <= FORMAT


class NewerFormatError(ValueError):
    """A later release wrote something that this one cannot read.

    Args:
        what: What was to be read.
        number: The form that it has.
    """

    def __init__(self, what: str, number: object) -> None:
        super().__init__(f"{what} has format {number}; this release reads formats up to {FORMAT}: upgrade it")
