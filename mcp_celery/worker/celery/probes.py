"""Probes of a worker: ``/healthz``, ``/readyz`` and the heartbeat file, on every pool.

They are served by a thread of the worker's parent beside its heartbeats, so that neither a job nor a busy consumer
keeps a probe waiting.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

import click
from celery import Celery, bootsteps
from celery.worker import state

from mcp_celery.asyncio_pool.pool import TaskPool
from mcp_celery.common.endpoint_listener import EndpointListener, bind
from mcp_celery.common.endpoints import HEALTHZ, READYZ, Answer, Endpoints, states
from mcp_celery.common.outage import Outage
from mcp_celery.telemetry.setup import metrics_endpoint
from mcp_celery.worker.celery.bootsteps import runtimes
from mcp_celery.worker.job import WorkerRuntime
from mcp_celery.worker.probe_options import ProbeOptions

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS: Final = 1.0
BLOCKED_SECONDS: Final = 2.0
"""After this time without a turn an event loop counts as blocked."""
END_SECONDS: Final = 5.0
"""How long the worker's end waits for the thread."""
READS: Final = 3
"""How often a set that another thread changes meanwhile is read."""


class WorkerProbes:
    """Answers the probes of one worker.

    Args:
        worker: Celery's worker.
        served: What the jobs of each server share that this worker runs.
        options: Where to answer.

    Raises:
        ClickException: The port or the file cannot be used.
    """

    def __init__(self, worker: Any, served: Sequence[WorkerRuntime], options: ProbeOptions) -> None:
        self._worker = worker
        self._served = served
        self._options = options
        self._is_connected = False
        self._is_ending = False
        self._held_seconds = 0.0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._file_outage = Outage("the heartbeat file (MCP_CELERY_WORKER_HEARTBEAT_FILE)", logger)
        bound = _bind(options)
        self._listener = None if bound is None else EndpointListener(self.endpoints, bound)
        if options.file is not None:
            try:
                options.file.touch()
            except OSError as error:
                raise click.ClickException(
                    f"MCP_CELERY_WORKER_HEARTBEAT_FILE={options.file} cannot be written: {error.strerror}"
                ) from error

    @property
    def endpoints(self) -> Endpoints:
        """The endpoints of a worker."""
        return {HEALTHZ: self.alive, READYZ: self.ready, **metrics_endpoint(self._options.exporters)}

    # Told by the worker

    def start(self) -> None:
        """Start to answer."""
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="mcp-celery-probes", daemon=True
        )
        self._thread.start()

    def connected(self, is_connected: bool) -> None:
        """Note whether the worker is connected to its broker."""
        self._is_connected = is_connected

    def ends(self) -> None:
        """Note that the worker takes no further job."""
        self._is_ending = True

    def stop(self) -> None:
        """End the thread, and remove the heartbeat file. A second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if (loop := self._loop) is not None:
            loop.call_soon_threadsafe(self._stopping.set)
        thread.join(END_SECONDS)
        if thread.is_alive():
            logger.warning("the thread that answers probes did not end within %.0f s", END_SECONDS)
        if self._options.file is not None:
            self._options.file.unlink(missing_ok=True)

    # The thread

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        listener = self._listener
        try:
            if listener is not None:
                await listener.open()
            while not self._stopping.is_set():
                self._held_seconds = self._longest_hold()
                await asyncio.to_thread(self._touch)
                try:
                    async with asyncio.timeout(LOOK_EVERY_SECONDS):
                        await self._stopping.wait()
                except TimeoutError:
                    continue
        except Exception:
            logger.exception("this worker no longer answers probes")
            raise
        finally:
            if listener is not None:
                await listener.aclose()

    def _touch(self) -> None:
        """Set the file's time to that of the last heartbeat; of several servers' heartbeats the oldest counts."""
        beaten_at = self._beaten_at()
        if self._options.file is None or beaten_at is None:
            return
        try:
            self._options.file.touch()
            os.utime(self._options.file, (beaten_at, beaten_at))
        except OSError as error:
            self._file_outage.began(type(error).__name__, error.strerror or type(error).__name__)
        else:
            self._file_outage.ended()

    def _beaten_at(self) -> float | None:
        times = [one.heart.beaten_at for one in self._served]
        return None if None in times else min(one for one in times if one is not None)

    def _longest_hold(self) -> float:
        """For how long the event loop of jobs has been blocked; of prefork's children nothing is known here."""
        pool = self._worker.pool
        if isinstance(pool, TaskPool):
            return pool.held_seconds()
        return max((one.held_seconds() for one in self._served), default=0.0)

    # The endpoints

    async def alive(self) -> Answer:
        """Answer whether the heartbeats go on, stored or not."""
        goes_on = self._beats()
        return states({"status": "ok" if goes_on else "no heartbeat"}, ok=goes_on)

    def _beats(self) -> bool:
        beaten_at = self._beaten_at()
        return beaten_at is not None and time.time() - beaten_at <= self._options.overdue_seconds

    async def ready(self) -> Answer:
        """Answer whether the worker can take jobs. One whose slots are all taken is busy, and ready."""
        is_stored = self._beats() and all(one.heart.is_stored for one in self._served)
        is_blocked = self._held_seconds >= BLOCKED_SECONDS
        is_ready = is_stored and self._is_connected and not is_blocked and not self._is_ending
        values: dict[str, str | float] = {
            "status": "ready" if is_ready else "ending" if self._is_ending else "not ready",
            "store": "ok" if is_stored else "lost",
            "broker": "ok" if self._is_connected else "lost",
            "loop": "blocked" if is_blocked else "ok",
        }
        if is_blocked:
            values["loop_blocked_seconds"] = round(self._held_seconds, 1)
        full_seconds = self._full_seconds()
        values["pool"] = "ok" if full_seconds is None else "full"
        if full_seconds is not None:
            values["pool_full_seconds"] = round(full_seconds, 1)
        return states(values, ok=is_ready)

    def _full_seconds(self) -> float | None:
        """For how long every slot is taken and no job has begun; None while one is free."""
        for _ in range(READS):
            try:
                began = [one.time_start for one in state.active_requests if one.time_start]
            except RuntimeError:  # the worker's thread has changed the set
                continue
            if len(began) < self._worker.pool.num_processes:
                return None
            return max(0.0, time.time() - max(began))
        return None


def _bind(options: ProbeOptions) -> socket.socket | None:
    if options.port is None:
        return None
    try:
        return bind(options.host, options.port)
    except OSError as error:
        raise click.ClickException(
            f"MCP_CELERY_WORKER_HEALTH_PORT={options.port} cannot be used on {options.host}: {error.strerror}. Each "
            "worker of a machine needs a port of its own"
        ) from error


_probes: Final[WeakKeyDictionary[Celery, WorkerProbes]] = WeakKeyDictionary()
"""Of the worker that each app runs."""


class Probes(bootsteps.StartStopStep):
    """Has a worker answer probes, where a setting says so."""

    requires = ("mcp_celery.worker.celery.bootsteps:Vitals",)

    def create(self, parent: Any) -> None:
        """Take port and file, before anything is started."""
        served = runtimes(parent.app)
        if options := next((one.probes for one in served if one.probes is not None), None):
            _probes[parent.app] = WorkerProbes(parent, served, options)

    def start(self, parent: Any) -> None:
        """Start to answer."""
        if (probes := _probes.get(parent.app)) is not None:
            probes.start()

    def stop(self, parent: Any) -> None:
        """Say that the worker ends. Its jobs run on, and it answers until they have ended (:class:`ConnectedState`)."""
        if (probes := _probes.get(parent.app)) is not None:
            probes.ends()

    def terminate(self, parent: Any) -> None:
        """Stop to answer: the jobs are ended with the worker."""
        if (probes := _probes.pop(parent.app, None)) is not None:
            probes.stop()


class ConnectedState(bootsteps.StartStopStep):
    """Part of a worker's consumer, which starts anew whenever its connection to the broker was lost."""

    requires = ("celery.worker.consumer:Connection",)

    def start(self, parent: Any) -> None:
        """The broker has accepted the connection."""
        self._note(parent, is_connected=True)

    def stop(self, parent: Any) -> None:
        """The connection is lost, or the worker ends."""
        self._note(parent, is_connected=False)

    def shutdown(self, parent: Any) -> None:
        """Stop to answer: the worker's pool has ended."""
        if (probes := _probes.pop(parent.app, None)) is not None:
            probes.stop()

    @staticmethod
    def _note(parent: Any, *, is_connected: bool) -> None:
        if (probes := _probes.get(parent.app)) is not None:
            probes.connected(is_connected)
