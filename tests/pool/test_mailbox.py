"""Nothing that Celery is told is lost, late or out of order."""

import select
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from kombu.asynchronous import Hub
from kombu.message import Message
from vine import promise

from mcp_celery.asyncio_pool.mailbox import HubMailbox, ThreadMailbox
from tests.support.waiting import eventually_sync

pytestmark = pytest.mark.smoke  # no processes: quick


class FakeHub:
    """What the mailbox uses of kombu's hub."""

    def __init__(self) -> None:
        self.fired = 0
        self.ready: set[Any] = set()
        self._readers: dict[int, Callable[[], None]] = {}

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self._readers[fd] = callback

    def remove(self, file: Any) -> None:
        del self._readers[file.fileno()]

    def fire_timers(self) -> None:
        self.fired += 1

    def _pop_ready(self) -> set[Any]:
        ready, self.ready = self.ready, set()
        return ready

    def call_soon(self, callback: Any) -> None:
        self.ready.add(callback)

    def run_once(self, seconds: float = 0.0) -> bool:
        ready, _, _ = select.select(list(self._readers), [], [], seconds)
        for fd in ready:
            self._readers[fd]()
        return bool(ready)


def test_callbacks_run_in_order_on_the_hubs_thread() -> None:
    hub, mailbox = FakeHub(), HubMailbox()
    mailbox.post(print)  # before there is a hub: it waits
    mailbox.attach(hub)
    assert hub.run_once()
    told: list[tuple[int, int, int]] = []
    posters = [threading.Thread(target=_post, args=(mailbox, told, number)) for number in range(4)]
    for poster in posters:
        poster.start()
    deadline = time.monotonic() + 20
    while len(told) < 4 * 5000 and time.monotonic() < deadline:
        hub.run_once(1.0)
    for poster in posters:
        poster.join()
    assert {thread for thread, _, _ in told} == {threading.get_ident()}
    assert all([n for _, poster, n in told if poster == number] == list(range(5000)) for number in range(4))
    mailbox.close()


def _post(mailbox: HubMailbox, told: list[tuple[int, int, int]], poster: int) -> None:
    def tell(n: int) -> None:
        told.append((threading.get_ident(), poster, n))

    for n in range(5000):
        mailbox.post(tell, n)


def test_a_callback_that_raises_stops_no_other() -> None:
    hub, mailbox, told = FakeHub(), HubMailbox(), list[str]()
    mailbox.attach(hub)
    mailbox.post(told.append, "first")
    mailbox.post(int, "no number")
    mailbox.post(told.append, "second")
    hub.run_once()
    assert told == ["first", "second"]
    mailbox.close()


def test_a_callback_that_ends_the_worker_leaves_the_others_for_later() -> None:
    hub, mailbox, told = FakeHub(), HubMailbox(), list[str]()
    mailbox.attach(hub)
    mailbox.post(_exit)
    mailbox.post(told.append, "after")
    with pytest.raises(SystemExit):
        hub.run_once()
    assert hub.run_once(1.0)
    assert told == ["after"]
    mailbox.close()


def _exit() -> None:
    raise SystemExit(3)


def test_a_callback_that_a_callback_posts_runs_in_the_next_round() -> None:
    hub, mailbox, told = FakeHub(), HubMailbox(), list[int]()
    mailbox.attach(hub)

    def tell(n: int) -> None:
        told.append(n)
        if n < 2:
            mailbox.post(tell, n + 1)

    mailbox.post(tell, 0)
    assert [hub.run_once(1.0) for _ in range(3)] == [True] * 3
    assert told == [0, 1, 2]
    mailbox.close()


def test_a_hub_that_was_reset_runs_the_waiting_callbacks() -> None:
    hub, mailbox, told = Hub(), HubMailbox(), list[str]()
    mailbox.attach(hub)
    mailbox.post(told.append, "while the connection was lost")
    hub.reset()
    mailbox.attach(hub)
    hub.run_once()
    assert told == ["while the connection was lost"]
    mailbox.close()
    hub.close()


def test_acknowledgements_are_sent_while_the_hub_does_not_run() -> None:
    hub, mailbox, told = FakeHub(), HubMailbox(), list[str]()
    mailbox.attach(hub)

    class Told(Message):
        def ack_log_error(self, *_: Any, **__: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            told.append("ack")

    acknowledgement, other = promise(Told().ack_log_error), promise(told.append, ("read",))
    hub.ready = {acknowledgement, other}
    mailbox.pump(0, upkeep=True)
    assert (told, hub.fired, hub.ready) == (["ack"], 1, {other})
    mailbox.pump(0, upkeep=False)
    assert hub.fired == 1
    mailbox.close()


def test_a_closed_mailbox_has_run_all_callbacks_and_takes_no_more() -> None:
    mailbox, told = HubMailbox(), list[int]()
    for n in range(3):
        mailbox.post(told.append, n)
    mailbox.close()
    mailbox.post(told.append, 4)
    assert told == [0, 1, 2]


def test_without_a_hub_a_thread_runs_the_callbacks() -> None:
    mailbox, told = ThreadMailbox(), list[tuple[int, str]]()

    def tell(n: int) -> None:
        told.append((n, threading.current_thread().name))

    for n in range(1000):
        mailbox.post(tell, n)
    eventually_sync(lambda: len(told) == 1000)
    mailbox.post(lambda: told.append((1000, "last")))
    mailbox.close()
    assert told == [(n, "asyncio-pool-callbacks") for n in range(1000)] + [(1000, "last")]
