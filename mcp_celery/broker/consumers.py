"""Which workers consume which queues, and how busy they are, as they say themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from celery import Celery
from kombu.exceptions import KombuError

from mcp_celery.logs import get_logger

logger = get_logger(__name__)

Answers = TypeVar("Answers")

ANSWER_SECONDS: Final = 2.0
"""How long workers have to answer."""


@dataclass(frozen=True, slots=True)
class CeleryWorker:
    """What a worker answers.

    Attributes:
        node: Celery's node name.
        queues: The queues that it consumes.
        pool: Kind of its pool, for example ``asyncio``; None where it has not said so.
        slots: How many jobs it runs at a time, None where it has not said so.
        active: How many it runs now, of all servers and apps; None where it has not said so.
    """

    node: str
    queues: tuple[str, ...]
    pool: str | None = None
    slots: int | None = None
    active: int | None = None

    @property
    def is_busy(self) -> bool:
        """Whether every slot is taken."""
        return self.slots is not None and self.active is not None and self.active >= self.slots


def is_consumed(app: Celery, queue: str) -> bool:
    """Whether a worker answers that it consumes a queue. Blocks for some seconds.

    False also where the broker carries no remote control, or does not answer.

    Args:
        app: The Celery app whose workers are asked.
        queue: Name of the queue.
    """
    workers = _asked(app, ("active_queues",))
    return any(queue in _names(queues) for queues in (workers or {}).get("active_queues", {}).values())


def celery_workers(app: Celery, *, seconds: float = ANSWER_SECONDS) -> dict[str, CeleryWorker] | None:
    """The workers that answer, by node name. Blocks for some seconds.

    Args:
        app: The Celery app whose workers are asked.
        seconds: How long they have to answer.

    Returns:
        None where the broker carries no remote control, or does not answer.
    """
    answers = _asked(app, ("active_queues", "stats", "active"), seconds=seconds)
    if answers is None:
        return None
    queues, stats, active = answers["active_queues"], answers["stats"], answers["active"]
    return {
        node: CeleryWorker(
            node,
            tuple(_names(queues.get(node))),
            pool_of(stats.get(node)),
            _slots_of(stats.get(node)),
            len(cast("list[Any]", active[node])) if node in active else None,
        )
        for node in sorted({*queues, *stats})
    }


def told_by_workers(app: Celery, command: str, *, seconds: float = ANSWER_SECONDS) -> dict[str, dict[str, Any]] | None:
    """What workers answer to a command of remote control, by node name. Blocks for some seconds.

    Args:
        app: The Celery app whose workers are asked.
        command: The command. Workers that do not know it are left out.
        seconds: How long they have to answer.

    Returns:
        None where the broker carries no remote control, or does not answer.
    """
    control: Any = app.control
    replies = _unless_unreachable(app, lambda: control.broadcast(command, reply=True, timeout=seconds) or [])
    if replies is None:
        return None
    answers = {node: answer for reply in replies for node, answer in reply.items()}
    return {node: answer for node, answer in answers.items() if isinstance(answer, dict) and "error" not in answer}


def _asked(
    app: Celery, questions: tuple[str, ...], *, seconds: float = ANSWER_SECONDS
) -> dict[str, Mapping[str, Any]] | None:
    """The answers of all workers, by question and by node name."""

    def ask(name: str) -> Mapping[str, Any]:
        inspect: Any = app.control.inspect(timeout=seconds)
        return getattr(inspect, name)() or {}

    def ask_all() -> dict[str, Mapping[str, Any]]:
        # Together: each question waits for its whole time, since the number of workers is unknown.
        with ThreadPoolExecutor(len(questions)) as threads:
            return dict(zip(questions, threads.map(ask, questions), strict=True))

    return _unless_unreachable(app, ask_all)


def _unless_unreachable(app: Celery, ask: Callable[[], Answers]) -> Answers | None:
    """Ask the workers; None where the broker carries no remote control, or does not answer."""
    connection: Any = app.connection_for_read()
    try:
        return ask() if connection.supports_exchange_type("fanout") else None
    except broker_errors(app) as error:
        logger.debug("could not ask the workers: %s", type(error).__name__)
        return None
    finally:
        connection.release()


def broker_errors(app: Celery) -> tuple[type[Exception], ...]:
    """What commands to the workers raise where an app's broker does not answer."""
    connection: Any = app.connection_for_read()
    try:
        return (KombuError, OSError, *connection.connection_errors, *connection.channel_errors)
    finally:
        connection.release()


def _names(queues: Any) -> list[str]:
    return [str(one["name"]) for one in cast("list[dict[str, Any]]", queues or [])]


def _pool(stats: Any) -> dict[str, Any]:
    return dict(cast("dict[str, Any]", (stats or {}).get("pool") or {}))


def pool_of(stats: Any) -> str | None:
    """A pool's kind, from what a worker answers to ``stats``: the name of its class."""
    name = str(_pool(stats).get("implementation") or "")
    module = name.partition(":")[0].split(".")
    for kind in ("asyncio", "prefork", "thread", "solo", "gevent", "eventlet"):
        if any(kind in part for part in module):
            return "threads" if kind == "thread" else kind
    return name or None


def _slots_of(stats: Any) -> int | None:
    """How many jobs a pool runs at a time."""
    slots = _pool(stats).get("max-concurrency")
    return slots if isinstance(slots, int) else None
