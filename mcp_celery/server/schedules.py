"""``schedule``: Celery beat creates tasks, which belong to a scope as those of any caller do.

Beat sends a small job at each tick, and a worker that gets it submits the task. The task's id is made of the schedule's
name and of the time of the tick. So a tick that is sent several times, by two beats or because a worker died, makes one
task.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from abc import abstractmethod
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import celery
from celery import Celery, schedules
from celery.utils.time import get_exponential_backoff_interval, remaining

from mcp_celery.broker.naming import schedule_job_name
from mcp_celery.common.jsonable import NotJSONError, json_value
from mcp_celery.components.declarations import ComponentKey
from mcp_celery.config import TaskMeta
from mcp_celery.context import TaskContextSnapshot
from mcp_celery.engine import Caller, JSONObject, TaskRecord, now_ms
from mcp_celery.errors import (
    ConfigurationError,
    LimitExceededError,
    McpCeleryError,
    QueueUnavailableError,
    StoreUnavailableError,
)
from mcp_celery.logs import get_logger
from mcp_celery.protocol import REQUESTING_REVISION, TaskHost
from mcp_celery.server.connections import Connections

logger = get_logger(__name__)

MISSED_AFTER_MS: Final = 300_000
"""How late a tick may be that is not made up for."""
CLOCK_MS: Final = 300_000
"""By how much the clock of beat may be ahead of this process's. A tick further ahead counts as one of now.

Beat sends the tick of a crontab once. Where its clock is further ahead, the tick counts as that of the time before.
"""
EARLY_MS: Final = 1_000
"""By how much a tick may come early of which beat has not said when it was sent."""
MAX_RETRIES: Final = 5
LONGEST_WAIT_SECONDS: Final = 60
_LOOK_BACK: Final = tuple(timedelta(minutes=one) for one in (1, 60, 1_440, 31 * 1_440, 366 * 1_440, 8 * 366 * 1_440))
"""How far to look for the last time of a crontab: at first as far as those that come often need."""

When = schedules.crontab | schedules.schedule | timedelta | float

if TYPE_CHECKING:
    _CeleryTask = celery.Task[..., None]
else:
    _CeleryTask = celery.Task


@dataclass(frozen=True, slots=True)
class Tick:
    """One time of a schedule, in ms since the epoch.

    Attributes:
        at_ms: What distinguishes it from the others: the time of a crontab, the beginning of an interval.
        due_ms: When it was due.
    """

    at_ms: int
    due_ms: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """A tool that beat has run.

    Attributes:
        name: Tells it from the server's other schedules.
        tool: The tool.
        arguments: What it is called with.
        when: Celery's schedule.
        owner: Whose tasks they are.
        catch_up: Whether a tick that was missed is made up for.
    """

    name: str
    tool: str
    arguments: JSONObject
    when: schedules.crontab | schedules.schedule
    owner: Caller
    catch_up: bool

    def tick(self, sent_ms: int) -> Tick | None:
        """The tick that beat has sent at this time; None where none was ever due.

        Two beats send one tick of a crontab within moments, and one of an interval once each in the same interval.
        """
        if not isinstance(self.when, schedules.crontab):
            every_ms = max(1, round(1000 * self.when.seconds))
            return Tick(sent_ms - sent_ms % every_ms, sent_ms)
        due = _last_time(self.when, datetime.fromtimestamp(sent_ms / 1000, UTC))
        if due is None:
            return None
        due_ms = round(1000 * due.timestamp())
        return Tick(due_ms, due_ms)

    def is_missed(self, tick: Tick, at_ms: int) -> bool:
        """Whether a tick comes too late to make a task."""
        return not self.catch_up and at_ms - tick.due_ms > MISSED_AFTER_MS

    def task_id(self, namespace: str, tick: Tick) -> str:
        """The id of the task of a tick. Only its owner can read a task, so this id needs not be secret."""
        digest = hashlib.sha256(json.dumps([namespace, self.name, tick.at_ms]).encode()).digest()
        return f"tick-{urlsafe_b64encode(digest).decode().rstrip('=')}"


def _last_time(when: schedules.crontab, at: datetime) -> datetime | None:
    """The last time of a crontab that is not after another time."""
    for back in _LOOK_BACK:
        last, following = None, _next_time(when, at - back)
        while following <= at and (last is None or following > last):
            last, following = following, _next_time(when, following)
        if last is not None:
            return last
    return None


def _next_time(when: schedules.crontab, after: datetime) -> datetime:
    start, delta, _now = when.remaining_delta(after)
    return start.astimezone(UTC) + remaining(start, delta, start)


class Schedules:
    """The schedules of one server.

    Args:
        celery: The app whose beat sends the ticks, and whose time zone crontabs are read in.
        host: Gives what the protocol knows of the server.
        connections: Gives the server's connections.
    """

    def __init__(self, celery: Celery, host: Callable[[], TaskHost], connections: Callable[[], Connections]) -> None:
        self._celery = celery
        self._host = host
        self._connections = connections
        self._found: dict[str, Schedule] = {}

    def add(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None,
        when: When,
        *,
        owner: str,
        issuer: str | None,
        catch_up: bool,
        name: str | None,
    ) -> None:
        """As `Scheduling.schedule`."""
        name = name or tool
        if name in self._found:
            raise ConfigurationError(f"there are two schedules {name!r}: give one of them another name=")
        if not owner:
            raise ConfigurationError(f"the schedule {name!r} has no owner: name the scope whose tasks it makes")
        try:
            values: JSONObject = json_value(dict(arguments or {}))
        except NotJSONError as error:
            raise ConfigurationError(f"the arguments of the schedule {name!r} are not JSON: {error}") from error
        if isinstance(when, timedelta | int | float):
            when = schedules.schedule(when)
        if type(when) not in (schedules.crontab, schedules.schedule) or getattr(when, "seconds", 1) <= 0:
            raise ConfigurationError(
                f"the schedule {name!r} has to be a celery.schedules.crontab, or a time above 0 (timedelta, seconds)"
            )
        when.app = self._celery  # whose time zone holds
        caller = Caller(owner, issuer, requestor=json.dumps(["scope", owner, issuer]))
        self._found[name] = Schedule(name, tool, values, when, caller, catch_up)

    def get(self, name: str) -> Schedule | None:
        """A schedule by its name."""
        return self._found.get(name)

    def register(self, app: Celery, namespace: str, components: Iterable[ComponentKey]) -> None:
        """Register the job of the ticks with a worker's app.

        Raises:
            ConfigurationError: A schedule's tool does not run as a task.
        """
        there = set(components)
        for one in self._found.values():
            if ("tool", one.tool) not in there:
                raise ConfigurationError(
                    f"the schedule {one.name!r} runs the tool {one.tool!r}, and no tool of that name runs as a task: "
                    "declare it with task=True"
                )
        if self._found:
            attributes = {"name": schedule_job_name(namespace), "schedules": self, "namespace": namespace}
            app.register_task(type("ScheduleJob", (ScheduleJob,), attributes)())

    def beat_entries(self, namespace: str, queue: str) -> dict[str, Any]:
        """The entry for Celery's ``beat_schedule``.

        Args:
            namespace: The server's.
            queue: Where the ticks go.
        """
        return {
            f"{schedule_job_name(namespace)}.{one.name}": {
                "task": schedule_job_name(namespace),
                "schedule": one.when,
                "args": (one.name,),
                "options": {"queue": queue},
            }
            for one in self._found.values()
        }

    async def submit(self, schedule: Schedule, task_id: str) -> TaskRecord:
        """Submit the task of a tick, over connections of its own.

        Returns:
            The task's record, also where an earlier delivery of the tick has made it.

        Raises:
            InvalidRequestError: The tool refuses the arguments.
            LimitExceededError: The owner has too many tasks, or too many jobs wait.
            StoreUnavailableError: The store did not answer.
            QueueUnavailableError: The broker did not take the job; recovery publishes it later.
        """
        snapshot = TaskContextSnapshot(
            protocol_version=REQUESTING_REVISION.version,
            params={"name": schedule.tool, "arguments": schedule.arguments},
            inherited_issuer=schedule.owner.issuer,
        )
        connections = self._connections()
        async with connections.running():
            submission = await self._host().submission("tool", snapshot, schedule.owner, TaskMeta())
            return await connections.engine().submit(replace(submission, task_id=task_id))


class ScheduleJob(_CeleryTask):
    """The Celery task of the ticks of a server. Its name is ``mcp.{namespace}.schedule``."""

    # A worker that dies has another one submit the task, which is still created only once.
    acks_late = True
    reject_on_worker_lost = True
    acks_on_failure_or_timeout = True
    ignore_result = True
    max_retries = MAX_RETRIES

    schedules: Schedules
    namespace: str

    def apply_async(  # pyright: ignore[reportIncompatibleMethodOverride] - the stubs name each option
        self, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        """Publish a tick with the time at which beat sends it."""
        return super().apply_async(args, {"sent_ms": now_ms(), **(kwargs or {})}, **options)

    def run(self, name: str, sent_ms: int | None = None) -> None:
        """Submit the task of a tick.

        Args:
            name: The schedule's.
            sent_ms: When beat sent the tick, in ms since the epoch. None: beat does not know this server, and the tick
                counts as sent now.
        """
        schedule = self.schedules.get(name)
        if schedule is None:
            logger.error("a tick of the schedule %.100r makes no task: the server has no such schedule", name)
            return
        here_ms = now_ms()
        if sent_ms is None or int(sent_ms) > here_ms + CLOCK_MS:
            sent_ms = here_ms + EARLY_MS
        sent_ms = int(sent_ms)
        tick = schedule.tick(sent_ms)
        if tick is None or schedule.is_missed(tick, now_ms()):
            logger.warning(
                "missed a tick of the schedule %r, which makes no task: it comes more than %d s late (with "
                "catch_up=True it would make one)",
                name,
                MISSED_AFTER_MS // 1000,
            )
            return
        try:
            record = asyncio.run(self.schedules.submit(schedule, schedule.task_id(self.namespace, tick)))
        except (StoreUnavailableError, QueueUnavailableError, LimitExceededError) as error:
            wait = get_exponential_backoff_interval(2, self.request.retries, LONGEST_WAIT_SECONDS, full_jitter=True)
            raise self.retry(exc=error, kwargs={"sent_ms": sent_ms}, countdown=wait) from error
        except McpCeleryError as error:
            logger.error("a tick of the schedule %r makes no task: %s", name, error)
            return
        logger.info("a tick of the schedule %r has made task %s", name, record.shown_id)


class Scheduling:
    """An object that can have schedules: a server, or the tasks of one."""

    @abstractmethod
    def _schedules(self) -> Schedules:
        """The server's schedules."""
        raise NotImplementedError

    def schedule(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None,
        when: When,
        *,
        owner: str,
        issuer: str | None = None,
        catch_up: bool = False,
        name: str | None = None,
    ) -> None:
        """Have Celery beat run a tool as a task of an owner, who lists and follows it as any task.

        ```python
        server.schedule("build_report", {"year": 2026}, crontab(hour=6, minute=0), owner="client-a|alice")
        ```

        Call it in the module of the server. ``celery -A mcp_celery beat`` finds the schedules; an app of your own needs
        an entry of ``beat_schedule`` for each.

        Args:
            tool: A tool that runs as a task.
            arguments: What it is called with, as JSON; None for nothing.
            when: A ``celery.schedules.crontab``, or the time between two ticks: a timedelta, or seconds.
            owner: The scope of the tasks: ``client_id|subject`` of the owner's token, ``client_id`` where it names no
                subject.
            issuer: The issuer of the owner's token, None where the token names none.
            catch_up: Whether a tick that comes more than five minutes late makes a task.
            name: Of the schedule, which beat and the log show. None: the tool's.

        Raises:
            ConfigurationError: There is a schedule of that name, there is no owner, the arguments are not JSON, or
                ``when`` is not of these types.
        """
        self._schedules().add(tool, arguments, when, owner=owner, issuer=issuer, catch_up=catch_up, name=name)
