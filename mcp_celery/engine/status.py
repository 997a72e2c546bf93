"""Everything about states: which there are, and which may follow which.

===============  ==================================================================
from             may become
===============  ==================================================================
working          working (another message), input_required, completed, failed, cancelled
input_required   input_required, working, completed, failed, cancelled
completed        nothing
failed           nothing
cancelled        nothing
===============  ==================================================================

The same in both eras (SEP-1686 "Lifecycle", SEP-2663 "Task status"). Terminal is final: a success that arrives after a
cancel is dropped. Stores ask :func:`sources_of` and refuse every other move.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

TaskStatus = Literal["working", "input_required", "completed", "failed", "cancelled"]

OPEN: Final[frozenset[TaskStatus]] = frozenset({"working", "input_required"})
TERMINAL: Final[frozenset[TaskStatus]] = frozenset({"completed", "failed", "cancelled"})

MOVES: Final[Mapping[TaskStatus, frozenset[TaskStatus]]] = MappingProxyType(
    {
        "working": OPEN | TERMINAL,
        "input_required": OPEN | TERMINAL,
        "completed": frozenset(),
        "failed": frozenset(),
        "cancelled": frozenset(),
    }
)


def sources_of(target: TaskStatus) -> frozenset[TaskStatus]:
    """The states from which a task may become ``target``."""
    return frozenset(source for source, targets in MOVES.items() if target in targets)
