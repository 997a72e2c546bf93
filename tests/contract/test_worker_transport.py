"""A worker's transport on Redis: what it takes and acknowledges, and what kombu's own restores of it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import kombu
import pytest
import redis
from celery.concurrency.solo import TaskPool as SoloPool
from kombu.asynchronous import Hub, get_event_loop, set_event_loop
from kombu.transport.redis import Channel as KombuChannel
from kombu.transport.redis import QoS
from kombu.utils.json import loads
from redis.exceptions import NoPermissionError

from mcp_celery.common.redis_translation import celery_url
from mcp_celery.worker.celery import batched_channel, batched_qos
from mcp_celery.worker.celery.batched_channel import NEEDED, batch, missing
from mcp_celery.worker.celery.intake import tolerate

LATE: Final = {"task": "late"}
EARLY: Final = {"task": "early"}
THREADS: Final = object()
"""A pool whose workers read while they run jobs."""


class Broker:
    """Queues under a prefix of the test's own.

    Attributes:
        client: A client of the store.
        prefix: What the names of all keys begin with.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.client: Any = redis.Redis.from_url(url)
        self.prefix = f"{uuid.uuid4().hex}:"

    def connect(self, *, batched: bool = True, **options: Any) -> kombu.Connection:
        """Connect as a worker does."""
        connection = kombu.Connection(
            celery_url(self._url), transport_options={"global_keyprefix": self.prefix, **options}
        )
        if batched:
            assert batch(connection, pool=THREADS, acknowledges_late=lambda name: name == "late")
        return connection

    def put(self, queue: str, *bodies: object, headers: Mapping[str, str] = LATE, priority: int = 0) -> None:
        """Publish messages."""
        with self.connect(batched=False) as connection:
            producer = kombu.Producer(connection, serializer="json")
            kombu.Queue(queue, channel=connection.default_channel).declare()
            for body in bodies:
                producer.publish(body, routing_key=queue, headers=dict(headers), priority=priority)

    def key(self, name: str) -> str:
        """A key, as the store has it."""
        return f"{self.prefix}{name}"

    def unacked(self) -> int:
        """How many messages are noted as delivered."""
        noted = self.client.hlen(self.key("unacked"))
        assert noted == self.client.zcard(self.key("unacked_index"))
        return noted

    def waiting(self, queue: str) -> int:
        """How many messages wait in a queue."""
        return self.client.llen(self.key(queue))

    def clear(self) -> None:
        """Delete all keys."""
        for key in self.client.scan_iter(f"{self.prefix}*"):
            self.client.delete(key)
        self.client.close()


@pytest.fixture
def broker(store_url: str) -> Generator[Broker]:
    broker = Broker(store_url)
    try:
        yield broker
    finally:
        broker.clear()


@pytest.fixture
def hub() -> Generator[Hub]:
    """The loop of a worker, which turns when the test says so."""
    before = get_event_loop()
    hub = Hub()
    set_event_loop(hub)
    try:
        yield hub
    finally:
        set_event_loop(before)
        hub.close()


def turn(hub: Hub) -> None:
    """Let the loop turn once, as far as what was to be called soon."""
    loop: Any = hub
    for call in loop._pop_ready():
        call()


@contextmanager
def consuming(
    connection: kombu.Connection, queues: Sequence[str], handle: Callable[[Any], None], *, prefetch: int = 50
) -> Generator[None]:
    """Consume from queues."""
    channel: Any = connection.default_channel
    consumer = kombu.Consumer(
        channel,
        [kombu.Queue(queue) for queue in queues],
        on_message=handle,
        accept=["json"],
    )
    consumer.qos(prefetch_count=prefetch)
    with consumer:
        yield


def take(connection: kombu.Connection) -> None:
    """Read what one look at the queues gives."""
    connection.drain_events(timeout=5)


def qos_of(connection: kombu.Connection) -> Any:
    """What keeps the messages of a connection's channel."""
    channel: Any = connection.default_channel
    return channel.qos


def bodies(messages: Sequence[Any]) -> list[Any]:
    return [message.payload for message in messages]


def kill(connection: kombu.Connection) -> None:
    """Leave what a killed worker leaves: closed sockets, and nothing put back."""
    channel: Any = connection.default_channel
    channel.qos._delivered.clear()
    connection.close()


def test_up_to_32_messages_are_taken_and_noted_at_once_in_order(broker: Broker) -> None:
    broker.put("a", *range(40))
    got: list[Any] = []
    scripts = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal scripts
        scripts += 1
        return take_messages(*args, **options)

    with broker.connect() as connection, consuming(connection, ["a"], got.append):
        pool = qos_of(connection)._of_pool()
        take_messages, pool.take = pool.take, counted
        take(connection)
        assert scripts == 1
        assert bodies(got) == list(range(32))
        assert (broker.unacked(), broker.waiting("a")) == (32, 8)
        for message in got:
            message.ack()
        assert broker.unacked() == 0


def test_no_more_messages_are_taken_than_the_worker_may_prefetch(broker: Broker) -> None:
    broker.put("a", *range(10))
    got: list[Any] = []
    with broker.connect() as connection, consuming(connection, ["a"], got.append, prefetch=3):
        take(connection)
        assert bodies(got) == [0, 1, 2]
        assert broker.waiting("a") == 7


def test_messages_are_taken_from_queues_in_turn(broker: Broker) -> None:
    broker.put("a", *(f"a{number}" for number in range(4)))
    broker.put("b", *(f"b{number}" for number in range(2)))
    got: list[Any] = []
    with broker.connect() as connection, consuming(connection, ["a", "b"], got.append, prefetch=5):
        take(connection)
        assert bodies(got) == ["a0", "b0", "a1", "b1", "a2"]


def test_with_an_order_of_queues_the_first_is_emptied_first(broker: Broker) -> None:
    broker.put("a", "a0", "a1")
    broker.put("b", "b0", "b1", "b2")
    got: list[Any] = []
    with (
        broker.connect(queue_order_strategy="priority") as connection,
        consuming(connection, ["b", "a"], got.append, prefetch=4),
    ):
        take(connection)
        assert bodies(got) == ["b0", "b1", "b2", "a0"]


def test_urgent_messages_of_all_queues_come_first(broker: Broker) -> None:
    for queue in ("a", "b"):
        broker.put(queue, f"{queue} last", priority=9)
        broker.put(queue, f"{queue} first", priority=0)
    got: list[Any] = []
    with broker.connect() as connection, consuming(connection, ["a", "b"], got.append):
        take(connection)
        assert bodies(got) == ["a first", "b first", "a last", "b last"] or bodies(got) == [
            "a first",
            "b first",
            "b last",
            "a last",
        ]


@pytest.mark.parametrize("left_by_ours", [True, False], ids=["ours to kombu", "kombu to ours"])
def test_messages_of_a_killed_worker_are_restored_by_the_other_transport(broker: Broker, left_by_ours: bool) -> None:
    broker.put("a", *range(5))
    broker.put("a", "é ☃", {"deep": [1, None, {"a": "/"}]}, priority=3)
    sent = set(broker.client.lrange(broker.key("a"), 0, -1)) | set(
        broker.client.lrange(broker.key("a\x06\x163"), 0, -1)
    )
    got: list[Any] = []
    killed = broker.connect(batched=left_by_ours)
    with consuming(killed, ["a"], got.append):
        while len(got) < 7:
            take(killed)
        kill(killed)
    assert (broker.unacked(), broker.waiting("a")) == (7, 0)

    restored: list[Any] = []
    with broker.connect(batched=not left_by_ours, visibility_timeout=0, unacked_restore_throttle=1) as other:
        channel: Any = other.default_channel
        channel.qos.restore_visible(num=None, interval=1)
        assert broker.unacked() == 0
        with consuming(other, ["a"], restored.append):
            while len(restored) < 7:
                take(other)
            assert sorted(map(str, bodies(restored))) == sorted(map(str, bodies(got)))
            assert all(message.headers["redelivered"] for message in restored)
            for message in restored:
                message.ack()
    assert (broker.unacked(), broker.waiting("a")) == (0, 0)
    assert len(sent) == 7


def test_taken_messages_are_noted_as_kombu_notes_them(broker: Broker) -> None:
    noted: list[dict[bytes, Any]] = []
    broker.put("a", "first", "é ☃", {"n": [1.5, True]})
    for batched in (True, False):
        connection = broker.connect(batched=batched)
        got: list[Any] = []
        with consuming(connection, ["a"], got.append):
            while len(got) < 3:
                take(connection)
            stored = broker.client.hgetall(broker.key("unacked"))
            noted.append({tag: loads(text) for tag, text in stored.items()})
            qos = qos_of(connection)
            for message in reversed(got):
                qos.restore_by_tag(message.delivery_tag)
            qos._delivered.clear()
        connection.close()
    ours, kombus = noted
    for entry in kombus.values():  # restored once
        entry[0]["headers"].pop("redelivered")
        entry[0]["properties"]["delivery_info"].pop("redelivered")
    assert ours == kombus


def test_closing_puts_back_what_is_not_acknowledged_and_sends_what_waits(broker: Broker, hub: Hub) -> None:
    broker.put("a", *range(4))
    got: list[Any] = []
    connection = broker.connect()
    with consuming(connection, ["a"], got.append):
        take(connection)
        got[1].ack()
        assert broker.unacked() == 4  # until the loop turns
        connection.close()
    assert (broker.unacked(), broker.waiting("a")) == (0, 3)


@pytest.mark.parametrize("batched", [True, False], ids=["ours", "kombu's"])
def test_messages_of_a_lost_connection_are_neither_acknowledged_nor_rejected(broker: Broker, batched: bool) -> None:
    broker.put("a", *range(2))
    got: list[Any] = []
    connection = broker.connect(batched=batched)
    if not batched:
        tolerate(connection)
    with consuming(connection, ["a"], got.append):
        while len(got) < 2:
            take(connection)
        kill(connection)
    acknowledged, rejected = got
    acknowledged.ack_log_error(logging.getLogger(), connection.connection_errors)
    rejected.reject_log_error(logging.getLogger(), connection.connection_errors)
    assert broker.unacked() == 2


def test_acknowledgements_of_one_turn_of_the_loop_are_one_script(broker: Broker, hub: Hub) -> None:
    broker.put("a", *range(4))
    got: list[Any] = []
    with broker.connect() as connection, consuming(connection, ["a"], got.append):
        take(connection)
        for message in got[:3]:
            message.ack()
        assert broker.unacked() == 4
        turn(hub)
        assert broker.unacked() == 1


def test_a_job_that_is_acknowledged_before_it_begins_is_acknowledged_at_once(broker: Broker, hub: Hub) -> None:
    broker.put("a", "x", headers=EARLY)
    got: list[Any] = []
    with broker.connect() as connection, consuming(connection, ["a"], got.append):
        take(connection)
        got[0].ack()
        assert broker.unacked() == 0


def test_a_worker_that_ends_acknowledges_at_once(broker: Broker, hub: Hub) -> None:
    broker.put("a", *range(2))
    got: list[Any] = []
    with broker.connect() as connection:
        with consuming(connection, ["a"], got.append):
            take(connection)
            got[0].ack()
        assert broker.unacked() == 1  # sent when it stopped to consume
        got[1].ack()
        assert broker.unacked() == 0


def test_acknowledgements_that_fail_are_sent_later(
    broker: Broker, hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker.put("a", *range(2))
    got: list[Any] = []
    monkeypatch.setattr(batched_qos, "FIRST_PAUSE_SECONDS", 0.0)
    with broker.connect() as connection, consuming(connection, ["a"], got.append):
        take(connection)
        scripts = qos_of(connection)._of_pool()
        send = scripts.acknowledge
        scripts.acknowledge = failing(redis.ConnectionError("reset"))
        with caplog.at_level(logging.WARNING):
            for message in got:
                message.ack()
            turn(hub)
            turn(hub)
        assert broker.unacked() == 2
        assert caplog.text.count("could not acknowledge 2 jobs yet: reset") == 1
        scripts.acknowledge = send
        hub.fire_timers()  # pyright: ignore[reportUnknownMemberType]
        assert broker.unacked() == 0


def test_acknowledgements_are_tried_again_however_often_they_have_failed(broker: Broker, hub: Hub) -> None:
    broker.put("a", 0)
    got: list[Any] = []
    with broker.connect() as connection, consuming(connection, ["a"], got.append):
        take(connection)
        qos = qos_of(connection)
        qos._failures = 5_000
        scripts = qos._of_pool()
        send, scripts.acknowledge = scripts.acknowledge, failing(redis.ConnectionError("reset"))
        got[0].ack()
        turn(hub)
        assert broker.unacked() == 1
        scripts.acknowledge = send
        qos.flush()
        assert broker.unacked() == 0


def failing(*errors: Exception, then: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """What raises errors, one a call, and then does something else; without that the last one again and again."""
    left = list(errors)

    def call(*args: Any, **options: Any) -> Any:
        if then is not None and not left:
            return then(*args, **options)
        raise left.pop(0) if len(left) > 1 or then is not None else left[0]

    return call


LOSSES: Final = (
    redis.ConnectionError("reset"),
    redis.TimeoutError("silent"),
    AttributeError("sendall"),
    OSError("reset"),
)


@pytest.mark.parametrize("lost", LOSSES, ids=lambda lost: type(lost).__name__)
def test_a_message_is_noted_on_another_connection_where_one_is_lost(broker: Broker, lost: Exception) -> None:
    broker.put("a", *range(3))
    got: list[Any] = []
    with broker.connect() as connection, consuming(connection, ["a"], got.append):
        scripts = qos_of(connection)._of_pool()
        scripts.take = failing(lost, then=scripts.take)
        take(connection)
        assert bodies(got) == [0]
        take(connection)
        assert bodies(got) == [0, 1, 2]
        assert broker.unacked() == 3


@pytest.mark.parametrize("lost", LOSSES, ids=lambda lost: type(lost).__name__)
def test_a_lost_broker_is_reported_as_lost(broker: Broker, lost: Exception) -> None:
    broker.put("a", 0)
    got: list[Any] = []
    with broker.connect() as connection, consuming(connection, ["a"], got.append):
        scripts = qos_of(connection)._of_pool()
        take_messages, scripts.take = scripts.take, failing(lost)
        with pytest.raises((redis.ConnectionError, redis.TimeoutError, OSError)):
            take(connection)
        scripts.take = take_messages


@pytest.mark.parametrize("name", ["take", "acknowledge"])
def test_a_redis_that_refuses_scripts_has_kombus_own_commands(
    broker: Broker, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker.put("a", *range(3))
    got: list[Any] = []
    with broker.connect() as connection, consuming(connection, ["a"], got.append):
        scripts = qos_of(connection)._of_pool()
        setattr(scripts, name, failing(NoPermissionError("evalsha")))
        with caplog.at_level(logging.WARNING):
            while len(got) < 3:
                take(connection)
            assert broker.unacked() == 3
            for message in got:
                message.ack()
        assert (broker.unacked(), broker.waiting("a")) == (0, 0)
        assert caplog.text.count("goes on without: evalsha") == 1


NO_MESSAGES: Final = (b"", b"{", b"\xff", b"[]", b"7", b'{"properties": 7}', b"[" * 2000)


def test_items_that_are_no_messages_are_dropped_from_among_others(broker: Broker) -> None:
    broker.put("a", "first")
    delivery = b'"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": "a"}'
    unreadable = b'{"body": 7, "properties": {"body_encoding": "base64", ' + delivery + b"}}"
    broker.client.lpush(broker.key("a"), *NO_MESSAGES, unreadable)
    broker.put("a", "last")
    got: list[Any] = []
    with broker.connect() as connection, consuming(connection, ["a"], got.append):
        while len(got) < 2:
            take(connection)
        assert bodies(got) == ["first", "last"]
        assert (broker.unacked(), broker.waiting("a")) == (2, 0)


def test_taken_messages_return_in_order_when_handing_them_on_fails(broker: Broker) -> None:
    broker.put("a", *range(4))
    got: list[Any] = []

    def handle(message: Any) -> None:
        got.append(message)
        if len(got) == 2:
            raise OSError("the worker's loop is lost")

    connection = broker.connect()
    with suppress(OSError), consuming(connection, ["a"], handle):
        take(connection)
    connection.close()
    assert (broker.unacked(), broker.waiting("a")) == (0, 4)

    again: list[Any] = []
    with broker.connect() as connection, consuming(connection, ["a"], again.append):
        take(connection)
        assert sorted(bodies(again)) == [0, 1, 2, 3]
        assert bodies(again).index(2) < bodies(again).index(3)


def test_beside_a_queue_whose_messages_need_no_acknowledgement_each_message_is_taken_alone(broker: Broker) -> None:
    broker.put("a", *range(2))
    broker.put("b", *range(2))
    got: list[Any] = []
    with broker.connect() as connection, consuming(connection, ["a"], got.append):
        answers = kombu.Consumer(connection.default_channel, [kombu.Queue("b")], on_message=got.append, no_ack=True)
        with answers:
            take(connection)
            assert broker.waiting("a") + broker.waiting("b") == 3
            while len(got) < 4:
                take(connection)
            assert broker.unacked() == 2
        for message in got:
            message.ack()


def test_kombu_has_every_name_that_the_transport_needs() -> None:
    assert missing() is None


@pytest.mark.parametrize("owner", NEEDED)
def test_each_name_that_kombu_lacks_is_found(owner: type[Any]) -> None:
    for name, parameters in NEEDED[owner].items():
        assert missing({owner: {f"{name}_": parameters}}) == f"{owner.__name__}.{name}_"
        if parameters is not None:
            assert missing({owner: {name: ("self", "other")}}) == f"{owner.__name__}.{name}(self, other)"


def test_a_kombu_that_has_changed_keeps_its_own_transport_and_the_log_says_so_once(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batched_channel, "missing", lambda: "QoS.append")
    connection = broker.connect(batched=False)
    with caplog.at_level(logging.WARNING):
        assert not batch(connection, pool=THREADS, acknowledges_late=bool)
    assert [record.getMessage() for record in caplog.records] == [
        "the worker uses kombu's own transport: this version of kombu has no QoS.append"
    ]
    assert type(connection.default_channel) is KombuChannel
    assert type(qos_of(connection)) is QoS
    connection.close()


@pytest.mark.parametrize("url", ["amqp://localhost//", "sentinel://localhost", "memory://"])
def test_other_brokers_keep_their_transport(url: str) -> None:
    assert not batch(kombu.Connection(url), pool=THREADS, acknowledges_late=bool)


def test_the_solo_pool_keeps_kombus_transport() -> None:
    solo = object.__new__(SoloPool)
    assert not batch(kombu.Connection("redis://"), pool=solo, acknowledges_late=bool)
