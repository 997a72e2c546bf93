"""Outages, switched on and off."""

from __future__ import annotations


class Breakable:
    """An object that a test can make fail."""

    _failing = False

    def fail(self) -> None:
        """Fail from now on, as if the server behind it were gone."""
        self._failing = True

    def recover(self) -> None:
        """Answer again; nothing was lost."""
        self._failing = False
