"""Runs Celery's pool callbacks, in the order in which they were posted, on the thread that Celery expects.

With an asynchronous transport (Redis, AMQP) that is the worker's main thread, which runs kombu's hub: a socket wakes
it. Other transports have no hub, and their main thread sleeps in ``drain_events``; there a thread of the pool's own
tells, one thing after the other, and never the loop's thread, which an acknowledgement over a network would block.
"""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from kombu.message import Message

logger = logging.getLogger(__name__)

_ACKNOWLEDGEMENTS: Final = ("ack_log_error", "reject_log_error")


class Mailbox(Protocol):
    """Where jobs post."""

    def post(self, tell: Callable[..., Any], *args: Any) -> None:
        """Post a callback. From any thread; never waits."""
        ...

    def attach(self, hub: Any) -> None:
        """Deliver from inside a hub."""
        ...

    def pump(self, seconds: float, *, upkeep: bool) -> None:
        """Deliver what is there, or else wait some time for something.

        Args:
            seconds: Longest wait.
            upkeep: Also do for the hub, which does not run while a worker stops, what cannot wait.
        """
        ...

    def close(self) -> None:
        """Deliver the rest, and release the resources."""
        ...


def _deliver(letters: deque[tuple[Callable[..., Any], tuple[Any, ...]]]) -> None:
    """Tell everything that is there now. What fails is logged and harms nothing behind it."""
    for _ in range(len(letters)):
        try:
            tell, args = letters.popleft()
        except IndexError:  # a signal handler that stops the pool has delivered the rest meanwhile
            return
        try:
            tell(*args)
        except Exception:
            logger.exception("Pool callback %r failed", tell)


class HubMailbox:
    """Delivers on the thread of kombu's hub."""

    def __init__(self) -> None:
        self._letters: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._bell, self._button = socket.socketpair()
        self._bell.setblocking(False)
        self._button.setblocking(False)
        self._rung = False
        self._is_closed = False
        self._hub: Any = None

    def post(self, tell: Callable[..., Any], *args: Any) -> None:
        """Post a callback for the hub's thread."""
        self._letters.append((tell, args))
        if not self._rung:
            self._ring()

    def attach(self, hub: Any) -> None:
        """Deliver from inside a hub. Called again whenever the worker has connected anew."""
        self._hub = hub
        hub.add_reader(self._bell.fileno(), self.deliver)

    def deliver(self, *_: Any) -> None:
        """Tell what is there. What is posted meanwhile rings again, so that the hub has its turn in between."""
        if self._is_closed:
            return
        with suppress(BlockingIOError):
            self._bell.recv(64)
        # In this order: a post after this line rings again.
        self._rung = False
        try:
            _deliver(self._letters)
        finally:
            if self._letters and not self._rung:
                self._ring()

    def pump(self, seconds: float, *, upkeep: bool) -> None:
        """Deliver what is there, or else wait some time for something.

        A signal handler may close this mailbox meanwhile: the second Ctrl-C ends the pool inside of its own end.
        """
        if seconds:
            with selectors.DefaultSelector() as selector:
                selector.register(self._bell, selectors.EVENT_READ)
                selector.select(seconds)
        self.deliver()
        if upkeep and self._hub is not None:
            _keep_up(self._hub)

    def close(self) -> None:
        """Deliver the rest; what is posted later goes nowhere."""
        while self._letters:
            self.deliver()
        if self._hub is not None:
            self._hub.remove(self._bell)
            self._hub = None
        self._is_closed = True
        self._bell.close()
        self._button.close()

    def _ring(self) -> None:
        self._rung = True
        try:
            self._button.send(b"\0")
        except OSError:  # closed: no thread waits any more
            self._letters.clear()


class ThreadMailbox:
    """Delivers on a thread of its own."""

    def __init__(self) -> None:
        self._letters: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._posted = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._main, name="asyncio-pool-callbacks", daemon=True)
        self._thread.start()

    def post(self, tell: Callable[..., Any], *args: Any) -> None:
        """Post a callback."""
        self._letters.append((tell, args))
        self._posted.set()

    def attach(self, hub: Any) -> None:
        """There is no hub with such a transport."""

    def pump(self, seconds: float, *, upkeep: bool) -> None:  # noqa: ARG002 - the protocol's
        """Let the thread, which delivers by itself, have some time for it."""
        time.sleep(seconds)

    def close(self) -> None:
        """Let the thread deliver the rest, and end."""
        self._closed = True
        self._posted.set()
        self._thread.join(10.0)

    def _main(self) -> None:
        while self._letters or not self._closed:
            self._posted.wait()
            self._posted.clear()
            _deliver(self._letters)


def _keep_up(hub: Any) -> None:
    """Fire the hub's timers and send acknowledgements while the pool waits for its last jobs.

    The timers beat the broker's heart. Without the acknowledgements a worker that is killed while it waits would have
    the jobs delivered again that have ended meanwhile. Other callbacks stay for the hub's own end: they may read
    deliveries. (What ``celery.concurrency.prefork`` does while it waits.)
    """
    try:
        hub.fire_timers()
    except Exception:
        logger.exception("A timer of the worker's hub failed while the pool stops")
    for callback in hub._pop_ready():
        if not _is_acknowledgement(callback):
            hub.call_soon(callback)
            continue
        try:
            callback()
        except Exception:
            logger.exception("An acknowledgement failed while the pool stops")


def _is_acknowledgement(callback: Any) -> bool:
    method: Any = getattr(callback, "fun", None)
    owner: object = getattr(method, "__self__", None)
    return isinstance(owner, Message) and method.__name__ in _ACKNOWLEDGEMENTS
