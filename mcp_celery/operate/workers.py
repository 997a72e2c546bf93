"""Which workers there are, and letting one finish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from celery import Celery

from mcp_celery.broker.consumers import CeleryWorker, broker_errors, celery_workers, pool_of
from mcp_celery.broker.publisher import failure_kind
from mcp_celery.engine.recovery.model import RecoveryPolicy
from mcp_celery.operate.site import Open, Site

SAMPLED: Final = 1_000
"""How many jobs of a worker are searched for the oldest."""
LOOK_SECONDS: Final = 1.0
"""How often a worker that drains is asked what it still runs."""
SILENT_SECONDS: Final = 60.0
"""A worker that drains counts as gone after this time without an answer. One on the solo pool answers between jobs."""
UPTIME_SECONDS: Final = 2.0
"""By how much the uptime of one process may decrease from one answer to the next, where its clock is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker, as the store knows it and as it answers itself.

    Attributes:
        node: Celery's node name.
        servers: The namespaces of the servers whose jobs it runs, as far as the store knows.
        components: The components whose jobs it takes, each with its fingerprint.
        claims: How many jobs of these servers it has.
        heartbeat_ms: How long ago its last heartbeat was; None: the store knows none.
        lives: Whether that heartbeat still holds.
        oldest_ms: For how long the oldest of its jobs has run; None: it runs none.
        celery: What it answers; None where it does not, or cannot be asked.
    """

    node: str
    servers: tuple[str, ...] = ()
    components: tuple[tuple[str, str], ...] = ()
    claims: int = 0
    heartbeat_ms: int | None = None
    lives: bool = False
    oldest_ms: int | None = None
    celery: CeleryWorker | None = None

    @property
    def host(self) -> str:
        """The machine, as the node name says it."""
        return self.node.partition("@")[2]

    @property
    def state(self) -> str:
        """Its state: ``ok``, ``ending``, ``no answer``, ``no heartbeat`` or ``dead``.

        A worker that shuts down warmly takes the jobs of no component any more, and no commands.
        """
        if self.celery is not None:
            return "ok" if self.lives else "no heartbeat"
        if not self.lives:
            return "dead"
        return "no answer" if self.components else "ending"


async def workers_of(site: Site, servers: Sequence[Open]) -> list[Worker]:
    """The workers of servers, and those of the app that consume a queue of these servers without a heartbeat.

    Raises:
        StoreUnavailableError: The store did not answer.
    """
    answering = await asyncio.to_thread(celery_workers, site.app)
    found: dict[str, list[Worker]] = {}
    for server in servers:
        for worker in await _leased(site, server, answering or {}):
            found.setdefault(worker.node, []).append(worker)
    workers = [_joined(parts) for parts in found.values()]
    queues = {site.queue_name(server.namespace) for server in servers}
    workers += [
        Worker(node=node, celery=one)
        for node, one in (answering or {}).items()
        if node not in found and not queues.isdisjoint(one.queues)
    ]
    return sorted(workers, key=lambda worker: worker.node)


async def _leased(site: Site, server: Open, answering: dict[str, CeleryWorker]) -> list[Worker]:
    """The workers of one server that the store knows."""
    now, lease_ms = await server.inspection.now_ms(), RecoveryPolicy(site.settings.heartbeat_ms, 0).lease_ms
    return [
        Worker(
            node=leased.node,
            servers=(server.namespace,),
            components=tuple(sorted((name, version) for version, name in leased.components.items())),
            claims=leased.claims,
            heartbeat_ms=max(0, now - leased.until_ms + lease_ms),
            lives=leased.until_ms > now,
            oldest_ms=await _oldest_ms(server, leased.worker, now),
            celery=answering.get(leased.node),
        )
        for leased in await server.inspection.workers()
    ]


async def _oldest_ms(server: Open, worker: str, now: int) -> int | None:
    tasks = await server.inspection.tasks(await server.inspection.claimed(worker, SAMPLED))
    started = [
        task.record.started_at_ms
        for task in tasks
        if task is not None and task.has_started and task.record.started_at_ms is not None
    ]
    return now - min(started) if started else None


def _joined(parts: Sequence[Worker]) -> Worker:
    """A worker that runs the jobs of several servers, or a dead one and its successor of the same name."""
    ages = [one.heartbeat_ms for one in parts if one.heartbeat_ms is not None]
    oldest = [one.oldest_ms for one in parts if one.oldest_ms is not None]
    return Worker(
        node=parts[0].node,
        servers=tuple(dict.fromkeys(name for one in parts for name in one.servers)),
        components=tuple(dict.fromkeys(component for one in parts for component in one.components)),
        claims=sum(one.claims for one in parts),
        heartbeat_ms=min(ages, default=None),
        lives=any(one.lives for one in parts),
        oldest_ms=max(oldest, default=None),
        celery=parts[0].celery,
    )


class DrainError(Exception):
    """A worker cannot be drained; the text says why."""


def drained(app: Celery, node: str, *, timeout_seconds: float | None, asked: Callable[[], None] = lambda: None) -> int:
    """Have a worker take no more jobs, and end when those that it has are done. Blocks until it is asked to end.

    It gets commands to consume none of its queues and, when it runs and holds no job, to shut down warmly.

    Args:
        app: Its Celery app.
        node: Its node name.
        timeout_seconds: How long its jobs may last; None: for ever.
        asked: Called when the worker has been asked to take no more jobs.

    Returns:
        How many jobs it still had when it stopped taking more.

    Raises:
        DrainError: It does not answer, or no longer; its jobs last longer; its process is another by now; or the broker
            does not answer. Once it was asked, it takes no more jobs.
    """
    is_asked = False

    def note() -> None:
        nonlocal is_asked
        is_asked = True
        asked()

    try:
        return _drained(app, node, timeout_seconds, note)
    except broker_errors(app) as error:
        left = f"the worker {node} takes no more jobs, and runs on" if is_asked else f"the worker {node} was not asked"
        raise DrainError(f"the broker does not answer ({failure_kind(error)}): {left}") from error


def _drained(app: Celery, node: str, timeout_seconds: float | None, asked: Callable[[], None]) -> int:
    control: Any = app.control
    inspect: Any = control.inspect(destination=[node], timeout=LOOK_SECONDS)
    queues, process = _queues(inspect, node), _process(inspect, node)
    if queues is None or process is None:
        raise DrainError(
            f"the worker {node} does not answer, so it was not asked: it may be stopped or dead (`mcp-celery "
            "workers`); a worker on the solo pool answers when its job has ended"
        )
    for queue in queues:
        control.cancel_consumer(queue, destination=[node], reply=True, timeout=LOOK_SECONDS)
    asked()
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    first, answered_at = None, time.monotonic()
    while True:
        now = _process(inspect, node)
        if now is not None and not now.may_be(process):
            raise DrainError(
                f"the worker {node} was started again while it drained: the new process takes jobs, and runs on. A "
                "supervisor starts a worker again that has ended: stop it there"
            )
        left = None if now is None else _has(inspect, node)
        if left == 0:
            break
        if left is not None:
            first, answered_at = left if first is None else first, time.monotonic()
        elif not process.is_solo and time.monotonic() - answered_at > SILENT_SECONDS:
            raise DrainError(
                f"the worker {node} has not answered for {SILENT_SECONDS:g} seconds: it has ended, died, or hangs "
                "(`mcp-celery workers`)"
            )
        process = now or process
        if deadline is not None and time.monotonic() > deadline:
            raise DrainError(
                f"the worker {node} still has {'jobs' if left is None else f'{left} jobs'} after {timeout_seconds:g} "
                "seconds. It takes no more, and runs on: drain it again to wait for it"
            )
        time.sleep(LOOK_SECONDS)
    control.shutdown(destination=[node])
    return first or 0


@dataclass(frozen=True, slots=True)
class _Process:
    """A process of a worker, as it says itself."""

    pid: int | None
    uptime_seconds: float
    is_solo: bool

    def may_be(self, before: _Process) -> bool:
        """Whether it may be the process that has answered before. In containers each has the same number."""
        return self.pid == before.pid and self.uptime_seconds >= before.uptime_seconds - UPTIME_SECONDS


def _process(inspect: Any, node: str) -> _Process | None:
    """The process of a worker; None where it does not answer."""
    stats = cast("dict[str, Any]", inspect.stats() or {}).get(node)
    if stats is None:
        return None
    return _Process(stats.get("pid"), float(stats.get("uptime") or 0), is_solo=pool_of(stats) == "solo")


def _queues(inspect: Any, node: str) -> list[str] | None:
    """The queues that a worker consumes; None where it does not answer."""
    answers = cast("dict[str, list[dict[str, Any]]]", inspect.active_queues() or {})
    return [str(one["name"]) for one in answers[node]] if node in answers else None


def _has(inspect: Any, node: str) -> int | None:
    """How many jobs a worker runs or has received; None where it does not answer now."""
    answers = [getattr(inspect, name)() for name in ("active", "reserved", "scheduled")]
    if any(answer is None or node not in answer for answer in answers):
        return None
    return sum(len(answer[node]) for answer in answers)
