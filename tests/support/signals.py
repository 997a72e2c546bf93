"""Signals as a terminal's foreground has them, for tests that press Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Generator[None]:
    """Let SIGINT interrupt, in this process and in those it starts, however the tests themselves were started.

    A shell that starts them in the background (``pytest &`` in a script) has SIGINT ignored. Every process inherits
    that, and our commands keep to it, as `nohup` wants.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
