"""How the broker is made to lose jobs that wait."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

import kombu
import psutil
import redis

from tests.soak.names import THEIR_QUEUE
from tests.soak.plant import Plant
from tests.support.nodes import ProcessContainer

OWN_QUEUE: Final = "mcp.soak"
PAUSED_SECONDS: Final = (1.0, 4.0)
"""How long workers are paused so that jobs wait: less than their lease."""


def purge_queue(plant: Plant, chance: random.Random) -> None:
    """Purge the queue of the server as ``celery purge`` does, which itself takes too long to start."""

    def purge(_: redis.Redis) -> None:
        with kombu.Connection(plant.settings.celery_broker_url) as connection:
            kombu.Queue(OWN_QUEUE, channel=connection.default_channel).purge()

    _lose(plant, chance, [OWN_QUEUE], purge)


def delete_queue(plant: Plant, chance: random.Random) -> None:
    """Delete the queue of the server."""
    _lose(plant, chance, [OWN_QUEUE], lambda client: client.delete(OWN_QUEUE))


def empty_broker(plant: Plant, chance: random.Random) -> None:
    """Empty the broker, as one is that restarts without its data. The jobs of others are lost as well."""
    _lose(plant, chance, [OWN_QUEUE, THEIR_QUEUE], lambda client: client.flushall())


def _lose(plant: Plant, chance: random.Random, queues: list[str], purge: Callable[[redis.Redis], object]) -> None:
    """Let jobs wait for a moment, note which of them wait, and have them purged."""
    paused: list[ProcessContainer] = [*plant.workers, *plant.their_workers]
    with redis.Redis.from_url(plant.broker.url) as client, _paused(paused):
        time.sleep(chance.uniform(*PAUSED_SECONDS))
        lists = [cast("list[bytes]", client.lrange(queue, 0, -1)) for queue in queues]
        at = time.time()
        purge(client)
    for message in [message for messages in lists for message in messages]:
        loaded: Any = json.loads(message)
        plant.purged[loaded["headers"]["id"]] = at


@contextmanager
def _paused(nodes: list[ProcessContainer]) -> Generator[None]:
    """Stop the clocks of processes, as a hypervisor does."""
    processes = [process for node in nodes if node.status == "running" for process in node.family()]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
