"""The configuration of a component that runs as a task (`TaskConfig`) and of one request (`TaskMeta`).

The fields of `TaskConfig` are the one list of the options that Celery gets. A new one is declared with
`celery_option`, and the code that makes jobs and messages passes it on.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar, get_args

from mcp_celery.common.rates import Rate
from mcp_celery.common.standard_webhooks import check_url
from mcp_celery.errors import ConfigurationError

TaskMode = Literal["forbidden", "optional", "required"]
"""``forbidden``: never a task. ``optional``: a task for clients that can follow one. ``required``: only as a task."""

AskWhen = Literal["before", "during"]
"""When a tool's returned questions are asked. ``before``: in the foreground, before there is a task. ``during``: by the
task.
"""

Foreground = Literal["server", "worker"]
"""Where a tool runs for a caller that gets no task. ``server``: in the server's own process. ``worker``: as a job, for
whose end the server waits.
"""

DEFAULT_MAX_RESULT_BYTES: Final = 32 * 1024 * 1024
"""Of ``MCP_CELERY_MAX_RESULT_BYTES``; clients are made to take results of this size."""

Channel = Literal["class", "header", "property", "route"]
"""How Celery takes an option. ``class``: as an attribute of the job's class, which the host's ``task_annotations``
override. ``header`` and ``property``: with the job's message. ``route``: it chooses the queue of the message.
"""

RunningKey = Callable[[Mapping[str, Any]], object]
"""Gives by what running jobs are counted, from the arguments of a request."""

T = TypeVar("T")

_CELERY: Final = "celery"
_RATE_LIMIT: Final = re.compile(r"\d+(\.\d+)?(/[smh])?")
_VERSION: Final = re.compile(r"[A-Za-z0-9._+]{1,40}")
_MESSAGE_CHANNELS: Final[tuple[Channel, ...]] = ("route", "property", "header")
_MODES: Final[tuple[str, ...]] = get_args(TaskMode)
_ASK_WHEN: Final[tuple[str | None, ...]] = (None, *get_args(AskWhen))
_FOREGROUND: Final[tuple[str | None, ...]] = (None, *get_args(Foreground))


@dataclass(frozen=True, slots=True)
class CeleryOption:
    """How Celery takes an option.

    Attributes:
        own: For a component's job.
        exposed: For an existing job that is exposed as a tool. Its class is declared elsewhere, so nothing goes there;
            None: the option has no effect on it.
    """

    own: Channel
    exposed: Channel | None


def celery_option(default: T, own: Channel, *, exposed: Channel | None) -> T:
    """Declare a field of `TaskConfig` that is an option of Celery's, with Celery's name.

    Args:
        default: Its default. None is left out of messages.
        own: As `CeleryOption.own`.
        exposed: As `CeleryOption.exposed`.
    """
    return field(default=default, metadata={_CELERY: CeleryOption(own, exposed)})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskConfig:
    """How a tool, prompt or resource runs as a task. Celery's options carry Celery's names and units.

    Args:
        mode: Whether the component may, must or must not run as a task.
        poll_interval: How often a client should poll; a timedelta, or milliseconds. None: the server's setting.
        ttl: How long the task and its result are kept after creation; a timedelta, or milliseconds. None: the
            server's setting. The granted value is never above ``MCP_CELERY_MAX_TTL_MS``.
        queue: Celery queue of the jobs. None: ``task_routes``, else the server's own queue.
        priority: Celery message priority, 0…255.
        time_limit: Seconds after which Celery ends the job.
        soft_time_limit: Seconds after which ``SoftTimeLimitExceeded`` is raised in the job.
        rate_limit: How often a worker starts the job: a number a second, or ``"10/m"`` (``/s``, ``/m``, ``/h``).
        rate_limit_per_caller: How many tasks of the component one caller may create, over all servers: a number a
            second, or ``"10/m"`` (``/s``, ``/m``, ``/h``), up to 10,000. A task too many is refused with -32005 and
            ``retryAfterMs``.
        max_running: How many jobs of the component run at a time, over all workers. A task too many waits for a free
            place, and takes no slot of a worker meanwhile.
        max_running_per_caller: How many of them run at a time for one caller.
        max_running_key: What ``max_running`` counts by: the name of an argument, or a function of the arguments, such
            as ``lambda arguments: arguments["tenant"]``. Jobs with the same value count together. A resource has one
            argument, ``uri``. None: all jobs of the component count together.
        autoretry_for: Exceptions of the function after which the job is retried. The status stays ``working``; only
            the last outcome counts.
        max_retries: The most retries; None: without limit, which needs ``retry_backoff``.
        retry_backoff: Whole seconds before the first retry, doubled for each further one; True: 1; False: no wait.
        retry_backoff_max: The longest wait, in seconds.
        retry_jitter: Wait a random time up to the computed one, so that many jobs do not come back at once.
        acks_late: The function may run twice for one call without harm, so a job whose worker died is run again.
        expires: Seconds after which a job that no worker has begun ends as ``failed``.
        ask: When the questions are asked that a tool *returns* (``InputRequiredResult``). ``"before"``: its first round
            runs in the foreground, and the task is created when the answers are there. ``"during"``: the rounds are
            jobs of the task, and no worker waits between them. None: ``"before"`` where the tool's return annotation
            admits ``InputRequiredResult``, else ``"during"``. ``"before"`` also moves the first questions of
            ``Resolve(…)`` parameters in front of the task.
        foreground: Where a tool runs for a client that follows no task. ``"server"``: in the server's own process.
            ``"worker"``: also on a worker; the server waits for the job, passes its progress on, and cancels it
            when the client goes. None: the server's setting, ``MCP_CELERY_FOREGROUND``.
        input_timeout: Seconds that a tool waits for the answer to a question that it *awaits* (``ctx.elicit``, …). Then
            it gets a ``cancel`` answer; for sampling and roots, which have none, an error. Also how long a job on a
            worker waits for a client that follows no task to send its call again with answers (2026-07-28).
        required_scopes: OAuth scopes that a caller's token must have, to use the component, as a task or not, and to
            read, answer or cancel its tasks.
        version: The component's version, where its arguments do not show it: up to 40 letters, digits, ``.``, ``_``
            and ``+``. Jobs go to workers with the same version (``MCP_CELERY_COMPONENT_MATCH``). Change it when the
            function does something else with the same arguments. None: the component's own, if its kind of
            server has versions.
        webhook: Where webhooks go when a task of the component has ended or waits for its client. False: nowhere. None:
            where ``MCP_CELERY_WEBHOOK_URL`` says. A URL needs ``MCP_CELERY_WEBHOOK_SECRETS``, which sign them.
        abandon_after: Seconds after which an open task is cancelled if its owner neither polls nor follows it. False:
            never. None: the server's setting, ``MCP_CELERY_ABANDON_AFTER_SECONDS``.
        show_arguments: Names of arguments whose values may be shown in Flower and Celery's events. All others are
            hidden, because arguments hold what people say to a model.

    Raises:
        ConfigurationError: A value is out of range; the message names it.
    """

    mode: TaskMode = "optional"
    poll_interval: timedelta | int | None = None
    ttl: timedelta | int | None = None
    queue: str | None = celery_option(None, "route", exposed="route")
    priority: int | None = celery_option(None, "property", exposed="property")
    time_limit: float | None = celery_option(None, "class", exposed="header")
    soft_time_limit: float | None = celery_option(None, "class", exposed="header")
    rate_limit: str | float | None = celery_option(None, "class", exposed=None)
    rate_limit_per_caller: str | float | None = None
    max_running: int | None = None
    max_running_per_caller: int | None = None
    max_running_key: str | RunningKey | None = None
    autoretry_for: tuple[type[Exception], ...] = ()
    max_retries: int | None = celery_option(3, "class", exposed=None)
    retry_backoff: bool | int = False
    retry_backoff_max: int = 600
    retry_jitter: bool = True
    acks_late: bool = False
    expires: float | None = celery_option(None, "header", exposed="header")
    ask: AskWhen | None = None
    foreground: Foreground | None = None
    input_timeout: float = 3600.0
    required_scopes: tuple[str, ...] | list[str] = ()
    version: str | None = None
    webhook: str | Literal[False] | None = None
    abandon_after: float | Literal[False] | None = None
    show_arguments: tuple[str, ...] | list[str] = ()

    def __post_init__(self) -> None:
        self._check_choices()
        for name in ("poll_interval", "ttl"):
            if (milliseconds := _milliseconds(getattr(self, name))) is not None and milliseconds < 1:
                raise ConfigurationError(f"TaskConfig({name}={getattr(self, name)!r}): must be at least 1 ms")
        for name in ("time_limit", "soft_time_limit", "expires", "input_timeout"):
            if (seconds := getattr(self, name)) is not None and not seconds > 0:
                raise ConfigurationError(f"TaskConfig({name}={seconds!r}): must be above 0 seconds")
        if self.time_limit is not None and self.soft_time_limit is not None and self.soft_time_limit > self.time_limit:
            raise ConfigurationError("TaskConfig: soft_time_limit must not be above time_limit")
        if self.priority is not None and not 0 <= self.priority <= 255:
            raise ConfigurationError(f"TaskConfig(priority={self.priority!r}): must be within 0…255")
        if self.queue is not None and not self.queue:
            raise ConfigurationError("TaskConfig(queue=''): a queue's name must not be empty")
        if self.version is not None and not _VERSION.fullmatch(self.version):
            raise ConfigurationError(
                f"TaskConfig(version={self.version!r:.60}): expected 1 to 40 letters, digits, '.', '_' or '+'"
            )
        if isinstance(self.required_scopes, str):  # each of its letters would be one
            raise ConfigurationError(f"TaskConfig(required_scopes={self.required_scopes!r}): expected a list of scopes")
        self._check_webhook()
        self._check_abandon_after()
        self._check_running()
        self._check_retries()

    def _check_running(self) -> None:
        for name in ("max_running", "max_running_per_caller"):
            if (most := getattr(self, name)) is not None and not (isinstance(most, int) and most >= 1):
                raise ConfigurationError(f"TaskConfig({name}={most!r}): must be a number of jobs, 1 or more")
        if self.max_running_key is not None and self.max_running is None:
            raise ConfigurationError("TaskConfig(max_running_key=…): needs max_running, the limit that it counts for")
        if self.max_running_key == "":
            raise ConfigurationError("TaskConfig(max_running_key=''): expected an argument's name, or a function")

    def _check_abandon_after(self) -> None:
        seconds = self.abandon_after
        if seconds is not None and seconds is not False and not 0 < seconds < float("inf"):
            raise ConfigurationError(f"TaskConfig(abandon_after={seconds!r}): must be above 0 seconds; False: never")

    def _check_webhook(self) -> None:
        if self.webhook is None or self.webhook is False:
            return
        if not isinstance(self.webhook, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError("TaskConfig(webhook=…): expected a URL, False or None")
        try:
            check_url(self.webhook)
        except ValueError as error:  # the text does not show the URL, whose path may be a secret
            raise ConfigurationError(f"TaskConfig(webhook=…): {error}") from None

    def _check_choices(self) -> None:
        if self.mode not in _MODES:
            raise ConfigurationError(f"TaskConfig(mode={self.mode!r}): expected one of {', '.join(_MODES)}")
        if self.ask not in _ASK_WHEN:
            raise ConfigurationError(f"TaskConfig(ask={self.ask!r}): expected 'before' or 'during'")
        if self.foreground not in _FOREGROUND:
            raise ConfigurationError(f"TaskConfig(foreground={self.foreground!r}): expected 'server' or 'worker'")

    def _check_retries(self) -> None:
        try:
            _ = self.rate_per_caller
        except ValueError as error:
            raise ConfigurationError(
                f"TaskConfig(rate_limit_per_caller={self.rate_limit_per_caller!r}): {error}"
            ) from None
        if self.rate_limit is not None and not _RATE_LIMIT.fullmatch(str(self.rate_limit)):
            raise ConfigurationError(
                f"TaskConfig(rate_limit={self.rate_limit!r}): expected a number, or one with /s, /m or /h"
            )
        for one in self.autoretry_for:
            if not (isinstance(one, type) and issubclass(one, Exception)):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(f"TaskConfig(autoretry_for=…): {one!r} is not an exception class")
        if self.max_retries is not None and self.max_retries < 0:
            raise ConfigurationError(
                f"TaskConfig(max_retries={self.max_retries!r}): must not be negative; None: for ever"
            )
        for name in ("retry_backoff", "retry_backoff_max"):
            if (seconds := getattr(self, name)) < 0:
                raise ConfigurationError(f"TaskConfig({name}={seconds!r}): must not be negative")
        if self.autoretry_for and self.max_retries is None and not (self.retry_backoff and self.retry_backoff_max):
            raise ConfigurationError(
                "TaskConfig(autoretry_for=…, max_retries=None): a job that always fails would be retried for ever "
                "without a wait: set retry_backoff=True, and retry_backoff_max above 0"
            )

    @classmethod
    def from_bool(cls, value: bool) -> TaskConfig:
        """``task=True`` and ``task=False`` as a configuration.

        >>> TaskConfig.from_bool(True).mode
        'optional'
        >>> TaskConfig.from_bool(False).mode
        'forbidden'
        """
        return cls(mode="optional" if value else "forbidden")

    def supports_tasks(self) -> bool:
        """Whether the component may run as a task at all.

        >>> TaskConfig(mode="required").supports_tasks()
        True
        """
        return self.mode != "forbidden"

    def celery_options(self, channel: Channel, *, exposed: bool = False) -> dict[str, Any]:
        """The options that Celery takes by one channel.

        >>> TaskConfig(priority=5, expires=60).celery_options("header")
        {'expires': 60}

        Args:
            channel: Which one.
            exposed: Whether the job is an existing one that is exposed as a tool.

        Returns:
            Celery's names and the declared values. None is a value for a class (``max_retries=None``: for ever); a
            message carries no None.
        """
        values = {name: getattr(self, name) for name in _names_of(type(self), channel, exposed=exposed)}
        return values if channel == "class" else {name: one for name, one in values.items() if one is not None}

    def message_options(self) -> dict[str, Any]:
        """The options that the message of a component's own job carries, or is routed by.

        >>> TaskConfig(queue="gpu", time_limit=60).message_options()
        {'queue': 'gpu'}
        """
        return {name: value for one in _MESSAGE_CHANNELS for name, value in self.celery_options(one).items()}

    def with_message_options(self, options: Mapping[str, Any]) -> TaskConfig:
        """This configuration with the message's options of another one.

        >>> TaskConfig(queue="gpu", time_limit=60).with_message_options({"priority": 5}).message_options()
        {'priority': 5}

        Args:
            options: What `message_options` gave. What is not among them has no value.
        """
        named = [name for name, how in celery_options_of(type(self)).items() if how.own in _MESSAGE_CHANNELS]
        return replace(self, **{name: options.get(name) for name in named})

    @property
    def rate_per_caller(self) -> Rate | None:
        """How many tasks of the component one caller may create, None for any number."""
        return None if self.rate_limit_per_caller is None else Rate.parse(self.rate_limit_per_caller)

    @property
    def poll_interval_ms(self) -> int | None:
        """The declared poll interval in milliseconds, None where the server's setting holds."""
        return _milliseconds(self.poll_interval)

    @property
    def ttl_ms(self) -> int | None:
        """The declared time to live in milliseconds, None where the server's setting holds."""
        return _milliseconds(self.ttl)

    def validate_function(self, fn: Callable[..., Any], name: str, *, async_only: bool = False) -> None:
        """Refuse a function that no worker can run.

        Args:
            fn: The component's function.
            name: The component's name, for the error.
            async_only: Refuse sync functions too. By default they are allowed.

        Raises:
            ConfigurationError: ``fn`` is a generator, an async generator, a lambda without a name, or (with
                ``async_only``) a sync function.
        """
        if not self.supports_tasks():
            return
        target = _unwrap(fn)
        if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
            raise ConfigurationError(
                f"{name!r} cannot run as a task: it is a generator; return the result instead of yielding it"
            )
        if getattr(target, "__name__", name) == "<lambda>" and name in ("", "<lambda>"):
            raise ConfigurationError("a lambda cannot run as a task without a name: workers find components by name")
        if async_only and not inspect.iscoroutinefunction(target):
            raise ConfigurationError(
                f"{name!r} cannot run as a task here: it is a sync function; declare it `async def`"
            )


@functools.cache
def celery_options_of(config: type[TaskConfig]) -> dict[str, CeleryOption]:
    """The options of a kind of configuration that Celery takes, by name."""
    return {one.name: one.metadata[_CELERY] for one in fields(config) if _CELERY in one.metadata}


@functools.cache
def _names_of(config: type[TaskConfig], channel: Channel, *, exposed: bool) -> Sequence[str]:
    """The options that Celery takes by one channel."""
    options = celery_options_of(config).items()
    return [name for name, how in options if channel == (how.exposed if exposed else how.own)]


def as_config(task: bool | TaskConfig, component: str = "") -> TaskConfig:
    """``task=True``, ``task=False`` or a configuration, as a configuration.

    Args:
        task: What is declared.
        component: Name of the component, for the error.

    Raises:
        ConfigurationError: It is something else.
    """
    if isinstance(task, bool):
        return TaskConfig.from_bool(task)
    if not isinstance(task, TaskConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
        of = f" of {component!r}" if component else ""
        raise ConfigurationError(f"task={task!r}{of} is neither True, False nor a TaskConfig")
    return task


def _unwrap(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function that is really called: below ``functools.partial`` and callable objects."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if inspect.isroutine(fn):
        return fn
    return type(fn).__call__


def _milliseconds(value: timedelta | int | None) -> int | None:
    if isinstance(value, timedelta):
        return round(value / timedelta(milliseconds=1))
    return value


@dataclass(frozen=True, slots=True)
class TaskMeta:
    """Options of a request about its task.

    >>> TaskMeta(ttl=60_000).ttl
    60000

    Args:
        ttl: Milliseconds to keep the task, None for the server's setting.
        fn_key: Celery name of the job to route to, None for the component's own.
    """

    ttl: int | None = None
    fn_key: str | None = None
