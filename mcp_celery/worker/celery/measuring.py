"""Measurements of a worker's pool, and their way from its child processes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from celery import bootsteps, signals
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.worker import state

from mcp_celery.asyncio_pool.pool import TaskPool
from mcp_celery.telemetry.instruments import OVERDUE, SLOTS, SLOTS_USED, Attributes, is_measured
from mcp_celery.telemetry.loops import measure_lag
from mcp_celery.telemetry.setup import collect_from_children, flush, measure_in_child, stop_children

GRACE_SECONDS = 1.0
"""For how long a job may run past its limit before it is overdue: Celery needs a moment to end it."""
_TRIES = 5


class Measuring(bootsteps.StartStopStep):
    """Measures the worker's pool, where an OpenTelemetry SDK takes what it measures."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.enabled = is_measured.look()

    def create(self, parent: Any) -> None:
        """Make what child processes write to, before the pool forks. All steps are made before any is started."""
        # A child ends without Python's clean-ups, in which the SDK would send its last spans.
        signals.worker_process_shutdown.connect(_flush, weak=False, dispatch_uid="mcp_celery.flush_telemetry")
        # Jobs still end after the steps have: those that run are waited for.
        signals.worker_shutdown.connect(_end, weak=False, dispatch_uid="mcp_celery.end_telemetry")
        if issubclass(parent.pool_cls, PreforkPool):
            collect_from_children()
            signals.worker_process_init.connect(
                measure_in_child, weak=False, dispatch_uid="mcp_celery.measure_in_child"
            )

    def start(self, parent: Any) -> None:
        """Measure the pool, which has forked its children."""
        pool: Any = parent.pool
        if isinstance(pool, PreforkPool) and (children := collect_from_children()) is not None:
            children.start()
        SLOTS.watch(Measuring, lambda: [(pool.num_processes, {})])
        SLOTS_USED.watch(Measuring, lambda: [(len(_active()), {})])
        OVERDUE.watch(Measuring, partial(_overdue, parent.app))
        if isinstance(pool, TaskPool):
            pool.spawn(lambda: measure_lag("jobs"), "mcp-celery-lag")

    def terminate(self, parent: Any) -> None:  # noqa: ARG002 - Celery gives it
        """End what a cold shutdown ends."""
        _end()


def _flush(**_: Any) -> None:
    flush()


def _end(**_: Any) -> None:
    for gauge in (SLOTS, SLOTS_USED, OVERDUE):
        gauge.leave(Measuring)
    stop_children()
    flush()


def _active() -> list[Any]:
    """The jobs that run. Celery changes the set in another thread, and iterating it then fails."""
    for _ in range(_TRIES):
        try:
            return list(state.active_requests)
        except RuntimeError:
            continue
    return []


def _overdue(app: Any) -> Iterable[tuple[float, Attributes]]:
    """How many jobs run for longer than their time limit."""
    now, number = time.time(), 0
    for request in _active():
        limits = [one for one in (request.time_limits or ()) if one]
        task = request.task
        limit = max(limits, default=None) or task.time_limit or task.soft_time_limit or app.conf.task_time_limit
        limit = limit or app.conf.task_soft_time_limit
        started: float | None = request.time_start
        number += bool(limit and started and now - started > limit + GRACE_SECONDS)
    yield number, {}
