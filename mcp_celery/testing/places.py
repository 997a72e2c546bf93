"""Places of running jobs in memory: which tasks have them, and which wait for one."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import replace

from mcp_celery.engine import PlaceLimit, TaskRef
from mcp_celery.testing.kept import Kept
from mcp_celery.testing.turns import Line, Turns, place_in_line


class Places:
    """The places of one namespace, as ``places.lua`` keeps them. Not safe for threads: its owner holds a lock.

    Args:
        get: Gives a task; None: there is none.

    Attributes:
        turns: The turns of callers.
        granted: Tasks that have got their places, and whose jobs are to go on.
    """

    def __init__(self, get: Callable[[TaskRef], Kept | None]) -> None:
        self._get = get
        self._running: dict[str, dict[TaskRef, None]] = {}
        self._waiting: dict[str, Line] = {}
        self.granted: list[Kept] = []
        self.turns = Turns(get, self.granted)

    def take(self, kept: Kept) -> int | None:
        """Take the places that a task still needs, or wait for one.

        Returns:
            None where the task has them all; else how many tasks are before it.
        """
        self.stop_waiting(kept)
        limit = self._take(kept)
        if limit is None:
            return None
        self._wait(kept, limit)
        return self.ahead(kept)

    def ahead(self, kept: Kept) -> int | None:
        """How many tasks are before one that waits; None where it does not wait."""
        name = kept.record.waits_in
        if (before := self.turns.ahead(kept)) is not None:
            return before
        return None if name is None else bisect_left(self._waiting.get(name, []), place_in_line(kept))

    @property
    def waiting(self) -> int:
        """How many tasks wait."""
        return sum(map(len, self._waiting.values())) + self.turns.waiting

    def release(self, kept: Kept) -> None:
        """Release the places of a task, and give them to those that wait."""
        self.turns.leave(kept)
        if not kept.limits:
            return
        self.stop_waiting(kept)
        ref = kept.record.ref
        held = [limit for limit in kept.limits if ref in self._running.get(limit.name, {})]
        for limit in held:
            running = self._running[limit.name]
            del running[ref]
            if not running:
                del self._running[limit.name]
        for limit in held:
            self._grant(limit.name)

    def _take(self, kept: Kept) -> PlaceLimit | None:
        ref = kept.record.ref
        for limit in kept.limits:
            running = self._running.get(limit.name, {})
            if ref in running:
                continue
            if limit.name in self._waiting or len(running) >= limit.most:
                return limit
            self._running.setdefault(limit.name, {})[ref] = None
        return None

    def _wait(self, kept: Kept, limit: PlaceLimit) -> None:
        kept.record = replace(kept.record, waits_in=limit.name)
        insort(self._waiting.setdefault(limit.name, []), place_in_line(kept))

    def stop_waiting(self, kept: Kept) -> None:
        """Take a task off the line that it waits in."""
        self.turns.leave_line(kept)
        name = kept.record.waits_in
        if name is None:
            return
        kept.record = replace(kept.record, waits_in=None)
        line, place = self._waiting.get(name, []), place_in_line(kept)
        if place in line:
            line.remove(place)
            if not line:
                del self._waiting[name]

    def _grant(self, name: str) -> None:
        while line := self._waiting.get(name):
            kept = self._get(line[0][2])
            limit = None if kept is None else next((one for one in kept.limits if one.name == name), None)
            if kept is None or limit is None:
                line.pop(0)
                if not line:
                    del self._waiting[name]
                continue
            if len(self._running.get(name, {})) >= limit.most:
                return
            self.stop_waiting(kept)
            self._running.setdefault(name, {})[kept.record.ref] = None
            next_one = self._take(kept)
            if next_one is None:
                self.granted.append(kept)
            else:
                self._wait(kept, next_one)
