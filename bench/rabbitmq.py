"""A RabbitMQ that runs on this machine: whether it answers, who consumes a queue, and its process."""

from __future__ import annotations

from typing import Any, Final, cast

import kombu
import psutil

URL: Final = "amqp://guest:guest@127.0.0.1:5672//"
_CONNECT_SECONDS: Final = 5


def refusal(url: str) -> str | None:
    """Why a broker does not take connections; None where it does."""
    try:
        with kombu.Connection(url, connect_timeout=_CONNECT_SECONDS) as connection:
            connection.connect()
    except OSError as error:
        return str(error)
    return None


def has_consumer(url: str, queue: str) -> bool:
    """Whether a worker consumes a queue."""
    with kombu.Connection(url, connect_timeout=_CONNECT_SECONDS) as connection:
        channel = cast("Any", connection.channel())
        try:
            return channel.queue_declare(queue=queue, passive=True).consumer_count > 0
        except connection.channel_errors:  # there is no such queue yet, which closes the channel
            return False


def delete(url: str, queue: str) -> None:
    """Take a queue out of the broker, with the jobs in it and the exchange of its name."""
    with kombu.Connection(url, connect_timeout=_CONNECT_SECONDS) as connection:
        channel = connection.default_channel
        kombu.Queue(queue, channel=channel).delete()
        kombu.Exchange(queue, channel=channel).delete()


def process() -> int | None:
    """The process of the one RabbitMQ of this machine; None where there is no or more than one."""
    found = [one.pid for one in psutil.process_iter(["name"]) if one.info["name"] == "beam.smp"]
    return found[0] if len(found) == 1 else None
