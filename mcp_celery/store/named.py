"""What a process remembers of the keys that records name, so that it declares them with the first call of a script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

Use = Literal["read", "end", "life", "publication"]
"""What the keys are for: the result of a task, its end, how long it lives, the publication of its job."""
Names = Sequence[str | bytes]

MOST: Final = 2_048
"""After so many entries those before them are forgotten."""


class NamedKeys:
    """The keys that records name: those of the records that this process met last. Threads may share it.

    What is forgotten, or has changed, costs one more call of a script: the script asks for it.
    """

    def __init__(self) -> None:
        # No lock: a fork in another thread would leave it locked.
        self._new: dict[tuple[Use, str], Names] = {}
        self._old: dict[tuple[Use, str], Names] = {}

    def of(self, use: Use, record: str) -> Names:
        """The keys that a record names.

        Args:
            use: What they are for.
            record: Key of the record.
        """
        entry = (use, record)
        names = self._new.get(entry)
        return names if names is not None else self._old.get(entry, ())

    def learn(self, use: Use, record: str, names: Names) -> None:
        """Remember which keys a record names.

        Args:
            use: What they are for.
            record: Key of the record.
            names: The keys.
        """
        if len(self._new) >= MOST:
            self._old, self._new = self._new, {}
        self._new[use, record] = names
