"""A call that a worker's hub makes a while after it was asked for, once however often that was."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class HubCall:
    """Used on the hub's thread.

    Args:
        call: What is called.
        seconds: How long after it was first asked for.
    """

    def __init__(self, call: Callable[[], object], seconds: float) -> None:
        self._call = call
        self._seconds = seconds
        self._due = float("-inf")

    def ask(self, hub: Any) -> None:
        """Have the call made.

        Args:
            hub: kombu's.
        """
        now = time.monotonic()
        if now > self._due:  # a timer that was lost with its connection is made anew
            self._due = now + self._seconds
            hub.call_later(self._seconds, self._call)
