"""Python's garbage collector in a process that serves for long."""

from __future__ import annotations

import gc
from typing import Final, Literal

GarbageCollection = Literal["tuned", "default"]
"""Whether the collector is tuned in the processes that this package starts."""

_THRESHOLDS: Final = (20_000, 50, 100)
"""Python's own are (700, 10, 10), fit for scripts. Each task makes some thousand objects that live for milliseconds, so
those run a collection in every task, and look at all that was imported every few hundred.
"""


def set_up_collector(wanted: GarbageCollection) -> None:
    """Tune the collector, or leave it as it is.

    Tuned, it collects once, leaves everything that lives now out of later collections, and makes those rare. Call it
    when the process has imported what it needs and begins to serve. It may be called again.

    Args:
        wanted: The setting.
    """
    if wanted == "default":
        return
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
