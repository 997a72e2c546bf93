"""Turns of callers in memory: the tasks whose jobs the broker has, and those that wait for their caller's turn."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from mcp_celery.engine import TaskRef
from mcp_celery.engine.turns import window_of
from mcp_celery.testing.kept import Kept

Line = list[tuple[int, str, TaskRef]]
"""Tasks that wait, by when they were created, and by their compound keys."""


def place_in_line(kept: Kept) -> tuple[int, str, TaskRef]:
    """Where a task stands among those that wait for the same."""
    return (kept.record.created_at_ms, kept.record.key, kept.record.ref)


class Turns:
    """The turns of one namespace, as ``turns.lua`` keeps them. Not safe for threads: its owner holds a lock.

    Args:
        get: Gives a task; None: there is none.
        granted: Gets the tasks whose jobs are to go on.
    """

    def __init__(self, get: Callable[[TaskRef], Kept | None], granted: list[Kept]) -> None:
        self._get = get
        self._granted = granted
        self._window: dict[TaskRef, None] = {}
        self._lines: OrderedDict[str, Line] = OrderedDict()
        """In the order in which they have their turns."""
        self._most = window_of(0)

    @property
    def may_go(self) -> bool:
        """Whether the job of one more task may go to the broker at once."""
        return not self._lines and self._has_room

    @property
    def _has_room(self) -> bool:
        return len(self._window) < self._most

    @property
    def waiting(self) -> int:
        """How many tasks wait."""
        return sum(map(len, self._lines.values()))

    def resize(self, slots: int) -> None:
        """Note how many jobs the live workers can run at a time."""
        self._most = window_of(slots)
        self._grant()

    def take(self, kept: Kept) -> int | None:
        """Let the job of a task go to the broker, or wait for its caller's turn.

        Returns:
            None where it may go; else how many tasks of its caller are before it.
        """
        line = kept.line
        if line is None:
            return None
        if self.may_go:
            self._window[kept.record.ref] = None
            return None
        kept.record = replace(kept.record, waits_in=f"turn:{line}")
        insort(self._lines.setdefault(line, []), place_in_line(kept))
        ahead = self.ahead(kept)
        self._grant()
        return ahead

    def ahead(self, kept: Kept) -> int | None:
        """How many tasks of its caller are before one that waits for a turn; None where it does not."""
        if kept.line is None or kept.record.waits_in != f"turn:{kept.line}":
            return None
        return bisect_left(self._lines.get(kept.line, []), place_in_line(kept))

    def enter(self, kept: Kept) -> None:
        """Note that a job starts, whether or not there was room for it."""
        if kept.line is not None:
            self.leave_line(kept)
            self._window[kept.record.ref] = None

    def leave(self, kept: Kept) -> None:
        """Note that a task has no job any more, and let others go on."""
        if kept.line is not None:
            self.leave_line(kept)
            self._window.pop(kept.record.ref, None)
            self._grant()

    def leave_line(self, kept: Kept) -> None:
        """Take a task off the line that it waits in."""
        name = kept.line
        if name is None or self.ahead(kept) is None:
            return
        kept.record = replace(kept.record, waits_in=None)
        line, place = self._lines.get(name, []), place_in_line(kept)
        if place in line:
            line.remove(place)
            if not line:
                del self._lines[name]

    def _grant(self) -> None:
        while self._lines and self._has_room:
            name, line = next(iter(self._lines.items()))
            kept = self._get(line[0][2])
            if kept is None:
                line.pop(0)
                if not line:
                    del self._lines[name]
                continue
            self.leave_line(kept)
            if name in self._lines:
                self._lines.move_to_end(name)
            self._window[kept.record.ref] = None
            self._granted.append(kept)
