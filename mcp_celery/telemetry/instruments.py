"""Every metric of this package: its name, its unit, and what may be a label.

Labels are bounded: components are those that servers declare, all else comes from a fixed list. No label holds a scope,
a task id, or a text from the wire.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation

Attributes = Mapping[str, str | bool]
Forward = Callable[[str, float, Attributes], None]
"""Gives a measurement to another process: the name of the instrument, the value, the labels."""
Read = Callable[[], Iterable[tuple[float, Attributes]]]
"""Gives the values of a gauge as they are now, each with its labels. It must not block."""

OTHER: Final = "_OTHER"
"""The label of values that are not in a bounded list, as in OpenTelemetry's conventions."""

REQUEST_SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
"""Buckets that the MCP conventions of OpenTelemetry recommend."""
TASK_SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3_600, 14_400)
SHORT_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

_meter: Final = metrics.get_meter("mcp_celery")
_LOOK_EVERY_SECONDS: Final = 1.0


class Switch:
    """Whether OpenTelemetry has an SDK in this process, so that unused telemetry costs next to nothing.

    A program may configure its SDK at any time, so it is looked for again until there is one.

    Args:
        provider: Gives the global provider.
    """

    def __init__(self, provider: Callable[[], object]) -> None:
        self._provider = provider
        self._is_on = False
        self._look_at = 0.0

    def __call__(self) -> bool:
        if self._is_on:
            return True
        if (now := time.monotonic()) < self._look_at:
            return False
        self._look_at = now + _LOOK_EVERY_SECONDS
        # The API's own providers, which do nothing, are in the API's modules.
        module = type(self._provider()).__module__
        self._is_on = not module.startswith(("opentelemetry.metrics", "opentelemetry.trace"))
        return self._is_on

    def look(self) -> bool:
        """As calling it, and look now."""
        self._look_at = 0.0
        return self()


is_measured: Final = Switch(metrics.get_meter_provider)
"""Whether an SDK takes what this process measures: ours, or one that the program has configured."""
is_traced: Final = Switch(trace.get_tracer_provider)
"""Whether an SDK takes the spans of this process."""


class _Recorder(Protocol):
    """What takes a measurement: the ``add`` of a counter or the ``record`` of a histogram."""

    def __call__(self, amount: float, attributes: Attributes | None = None) -> None: ...


class Instrument:
    """A counter or a histogram. In a child process of a worker its measurements go to the parent.

    Args:
        name: Its name.
        record: What takes a measurement in this process.
    """

    _forward: Forward | None = None

    def __init__(self, name: str, record: _Recorder) -> None:
        self.name: Final = name
        self._record = record
        INSTRUMENTS[name] = self

    def __call__(self, value: float, attributes: Attributes) -> None:
        """Take a measurement.

        Args:
            value: For a counter how many more, for a histogram the value in its unit.
            attributes: The labels.
        """
        if Instrument._forward is not None:
            Instrument._forward(self.name, value, attributes)
        else:
            self._record(value, attributes)

    @staticmethod
    def forward_to(forward: Forward | None) -> None:
        """Have the measurements of this process go to another one; None: they stay here."""
        Instrument._forward = forward


INSTRUMENTS: Final[dict[str, Instrument]] = {}
"""By name."""


def _counter(name: str, unit: str, description: str) -> Instrument:
    return Instrument(name, _meter.create_counter(name, unit, description).add)


def _histogram(name: str, description: str, buckets: Sequence[float]) -> Instrument:
    made = _meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=buckets)
    return Instrument(name, made.record)


class Gauge:
    """Values that are read when metrics are collected. Without a source it has no value.

    Args:
        name: Its name.
        unit: Its unit.
        description: What it says.
    """

    def __init__(self, name: str, unit: str, description: str) -> None:
        self.name: Final = name
        self._sources: dict[object, Read] = {}
        _meter.create_observable_gauge(name, [self._observe], unit, description)

    def watch(self, owner: object, read: Read) -> None:
        """Add a source.

        Args:
            owner: Whose it is; one source an owner.
            read: Gives the values.
        """
        self._sources[owner] = read

    def leave(self, owner: object) -> None:
        """Remove an owner's source."""
        self._sources.pop(owner, None)

    def _observe(self, _: CallbackOptions) -> Iterable[Observation]:
        for read in tuple(self._sources.values()):
            for value, attributes in read():
                yield Observation(value, attributes)


REQUEST: Final = _histogram(
    "mcp.server.operation.duration",
    "Time from the receipt of a request or notification until its result is sent",
    REQUEST_SECONDS,
)
"""Labels: ``mcp.method.name``; ``gen_ai.tool.name`` or ``gen_ai.prompt.name``; ``error.type`` where it failed;
``mcp.protocol.version``.
"""
CREATED: Final = _counter("mcp_celery.tasks.created", "{task}", "Tasks whose job is published")
"""Labels: ``component``, ``type``, as have all that follow down to :data:`DELIVERED`."""
STARTED: Final = _counter("mcp_celery.tasks.started", "{job}", "Bodies of components that started")
ENDED: Final = _counter("mcp_celery.tasks.ended", "{task}", "Tasks that ended")
"""Further labels: ``status``, ``cause``, ``tool_error``."""
RETRIES: Final = _counter("mcp_celery.tasks.retries", "{job}", "Retries that components asked for")
RECOVERIES: Final = _counter("mcp_celery.tasks.recoveries", "{job}", "Jobs that are published again")
"""Further label: ``cause``."""
QUEUED: Final = _histogram(
    "mcp_celery.task.queue.duration", "Time from the publication of a job until its body starts", TASK_SECONDS
)
RAN: Final = _histogram("mcp_celery.task.run.duration", "Time for which the body of a job ran", TASK_SECONDS)
TOTAL: Final = _histogram("mcp_celery.task.duration", "Time from the creation of a task until its end", TASK_SECONDS)
"""Further label: ``status``."""
DELIVERED: Final = _histogram(
    "mcp_celery.notification.delay",
    "Time from the end of a task until its client's notification is sent",
    SHORT_SECONDS,
)
WEBHOOK_ATTEMPTS: Final = _counter("mcp_celery.webhooks.attempts", "{attempt}", "Attempts to deliver a webhook")
"""Label: ``outcome``: ``delivered``, ``failed`` and tried again, or ``given_up``."""
REFUSED: Final = _counter("mcp_celery.requests.refused", "{request}", "Requests that a limit refused")
"""Label: ``limit``."""
STORE: Final = _histogram("mcp_celery.store.duration", "Time of one round trip to the task store", SHORT_SECONDS)
"""Labels: ``operation``; ``error.type`` where it failed."""
LOOP_LAG: Final = _histogram("mcp_celery.event_loop.lag", "How late the event loop runs what is due", SHORT_SECONDS)
"""Label: ``loop``."""

OPEN: Final = Gauge("mcp_celery.tasks.open", "{task}", "Open tasks by where their job is, as the store has it")
"""Labels: ``namespace``, ``state``. Each server shows all tasks of its namespace: take the maximum, not the sum."""
WORKERS: Final = Gauge("mcp_celery.workers.alive", "{worker}", "Workers whose heartbeat the store has")
"""Label: ``namespace``. As with :data:`OPEN`, take the maximum."""
WEBHOOKS: Final = Gauge("mcp_celery.webhooks.waiting", "{webhook}", "Webhooks that no receiver has taken yet")
"""Label: ``namespace``. As with :data:`OPEN`, take the maximum."""
SLOTS: Final = Gauge("mcp_celery.worker.slots", "{job}", "Jobs that the worker can run at a time")
SLOTS_USED: Final = Gauge("mcp_celery.worker.slots.used", "{job}", "Jobs that the worker runs")
OVERDUE: Final = Gauge("mcp_celery.worker.jobs.overdue", "{job}", "Jobs that run for longer than their time limit")
