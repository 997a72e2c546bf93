"""Ctrl-C while work holds the event loop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def abortable() -> Generator[None]:
    """Let Ctrl-C end work that does not give way to the event loop: it raises ``KeyboardInterrupt`` in the context.

    The handler that the loop has for the signal is called too, once the work has ended: asyncio learns of signals by a
    file descriptor, whatever Python's own handler is.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
