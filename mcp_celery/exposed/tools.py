"""Exposed jobs and canvases as a server declares them: what the tool shows, and what is published for a call of it."""

from __future__ import annotations

import functools
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import anyio.to_thread
from celery import Celery
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel, RootModel

from mcp_celery.config import TaskConfig, celery_options_of
from mcp_celery.engine import ForeignPlan, ForeignWork, JSONObject, TaskRecord
from mcp_celery.errors import ConfigurationError, InvalidRequestError
from mcp_celery.exposed.arguments import require_sendable, sendable, signature_of, visible_signature
from mcp_celery.exposed.canvas import canvas_of, publish_canvas
from mcp_celery.exposed.canvas_app import CanvasApp
from mcp_celery.exposed.jobs import FoundJob
from mcp_celery.exposed.publishing import expires_of, publish_job, queue_name_of, serializer_of
from mcp_celery.redaction import shown_arguments

logger = logging.getLogger(__name__)

_OF_EVERY_TASK: Final = (
    "mode",
    "poll_interval",
    "ttl",
    "foreground",
    "required_scopes",
    "rate_limit_per_caller",
    "webhook",
    "abandon_after",
)
"""What the server itself does, also for jobs that it does not run."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Shared by both kinds of exposed tools.

    Attributes:
        tool_name: Name of the tool.
        description: For clients.
        config: What is declared about its tasks.
        model: The model of its arguments, None for that of the signature.
        structured_output: As for a tool.
        show_errors: Names of the exceptions whose text the caller may see.

    Raises:
        ConfigurationError: The model has no fields that could be arguments.
    """

    tool_name: str
    description: str
    config: TaskConfig
    model: type[BaseModel] | None
    structured_output: bool | None
    show_errors: Sequence[str]

    def __post_init__(self) -> None:
        model: Any = self.model
        if model is not None and not (inspect.isclass(model) and _has_fields(model)):
            raise ConfigurationError(
                f"{self.tool_name!r} cannot be exposed: arguments=… has to be a pydantic model with a field for each "
                f"argument, not {model!r}"
            )


def _has_fields(model: type[Any]) -> bool:
    return issubclass(model, BaseModel) and not issubclass(model, RootModel)


class ExposedTool(ABC):
    """A tool whose work other people's workers do.

    Args:
        offer: What it shows.
        signature: What the SDK makes its schema of.
    """

    def __init__(self, offer: Offer, signature: inspect.Signature) -> None:
        self.offer = offer
        self.signature = signature

    @abstractmethod
    async def plan(self, arguments: JSONObject, timeout_seconds: float) -> ForeignPlan:
        """How the work of a call is begun.

        Args:
            arguments: Those that were given, validated.
            timeout_seconds: How long publishing may take.

        Raises:
            InvalidRequestError: No work can be made of them.
        """


class ExposedJob(ExposedTool):
    """A tool that is one job.

    Args:
        offer: What it shows.
        app: Whose job it is.
        job: The job.
        hide: Parameters that no caller sees and that keep their defaults.
        fixed: Parameters that no caller sees and that get these values.
        terminate: Whether a cancel also ends a job that runs.

    Raises:
        ConfigurationError: No tool can be made of this job.
    """

    def __init__(
        self,
        offer: Offer,
        app: Celery,
        job: FoundJob,
        *,
        hide: Sequence[str],
        fixed: Mapping[str, Any],
        terminate: bool,
    ) -> None:
        super().__init__(offer, _signature(offer, job, hide, fixed))
        self._app = app
        self._job = job
        self._fixed = fixed
        self._terminate = terminate

    async def plan(self, arguments: JSONObject, timeout_seconds: float) -> ForeignPlan:
        """How the job is published."""
        serializer = serializer_of(self._app, self._job)
        sent: JSONObject = {name: sendable(value, serializer) for name, value in {**arguments, **self._fixed}.items()}

        def publish(record: TaskRecord, producer: Any) -> None:
            publish_job(
                self._app,
                self._job,
                record.job_id,
                sent,
                config=self.offer.config,
                shown=shown_arguments({"arguments": sent}, self.offer.config),
                producer=producer,
                timeout_seconds=timeout_seconds,
            )

        return ForeignPlan(
            self._job.name,
            ForeignWork(may_terminate=self._terminate),
            publish,
            queue_name_of(self._app, self._job, sent, self.offer.config),
            sent,
            expires_of(self._app, self._job, self.offer.config),
        )


def _signature(offer: Offer, job: FoundJob, hide: Sequence[str], fixed: Mapping[str, Any]) -> inspect.Signature:
    if offer.model is not None:
        if hide:
            raise ConfigurationError(f"{job.name!r} cannot be exposed: leave hidden arguments out of arguments=…")
        if both := sorted(fixed.keys() & offer.model.model_fields.keys()):
            raise ConfigurationError(f"{job.name!r} cannot be exposed: {both[0]!r} is fixed, and in arguments=… too")
        return inspect.Signature()
    if job.task is None:
        raise ConfigurationError(
            f"{job.name!r} cannot be exposed: the Celery app knows no such job here; import its module, or describe "
            "its arguments with arguments=<a pydantic model>"
        )
    return visible_signature(signature_of(job.task.run, job.name), job.name, hidden=hide, fixed=fixed)


class ExposedCanvas(ExposedTool):
    """A tool that is several jobs: what a function makes of the arguments.

    Args:
        offer: What it shows.
        app: Whose jobs they are.
        build: Gives a chain, group or chord, or a signature of one job.
        terminate: Whether a cancel also ends jobs that run.

    Raises:
        ConfigurationError: No tool can be made of this function.
    """

    def __init__(self, offer: Offer, app: Celery, build: Callable[..., Any], *, terminate: bool) -> None:
        name = offer.tool_name
        if inspect.iscoroutinefunction(build):
            raise ConfigurationError(f"{name!r} cannot be exposed: what makes its jobs must not be `async def`")
        # Its return annotation describes a signature, not the result.
        signature = signature_of(build, name).replace(return_annotation=inspect.Signature.empty)
        super().__init__(offer, visible_signature(signature, name, hidden=(), fixed={}))
        self._app = app
        self._build = build
        self._terminate = terminate

    @functools.cached_property
    def _canvas_app(self) -> CanvasApp:
        """Made when something is published: the host's app may not be configured before."""
        return CanvasApp(self._app)

    async def plan(self, arguments: JSONObject, timeout_seconds: float) -> ForeignPlan:
        """How the jobs are published."""
        name = self.offer.tool_name
        try:
            made = await anyio.to_thread.run_sync(functools.partial(self._build, **arguments))
        except ToolError as error:
            raise InvalidRequestError(str(error)) from error
        except Exception as error:
            logger.exception("could not make the jobs of tool %r", name)
            raise InvalidRequestError(f"Tool {name!r} could not make its jobs from these arguments") from error
        canvas = canvas_of(made, name)
        require_sendable(canvas.signature)

        def publish(record: TaskRecord, producer: Any) -> None:
            publish_canvas(self._canvas_app, canvas, record.job_ids, producer, timeout_seconds=timeout_seconds)

        return ForeignPlan(canvas.job_name, ForeignWork(len(canvas.parts), canvas.gathered, self._terminate), publish)


def config_of_job(config: TaskConfig, name: str) -> TaskConfig:
    """The declaration of a tool that is a user's job. It never runs in the server.

    Raises:
        ConfigurationError: An option has no effect on a job that is declared elsewhere.
    """
    taken = [option for option, how in celery_options_of(type(config)).items() if how.exposed is not None]
    return _checked(config, name, (*_OF_EVERY_TASK, *taken, "show_arguments"), "set it where the job is declared")


def config_of_canvas(config: TaskConfig, name: str) -> TaskConfig:
    """The declaration of a tool that is several jobs. It never runs in the server.

    Raises:
        ConfigurationError: An option is of single jobs.
    """
    return _checked(config, name, _OF_EVERY_TASK, "set it on the signatures")


def _checked(config: TaskConfig, name: str, allowed: Sequence[str], instead: str) -> TaskConfig:
    for field in fields(config):
        if field.name not in allowed and getattr(config, field.name) != field.default:
            raise ConfigurationError(f"{name!r} is exposed: TaskConfig({field.name}=…) has no effect; {instead}")
    if config.mode == "forbidden" or config.foreground == "server":
        raise ConfigurationError(f"{name!r} is exposed: it runs in its own workers, so it cannot be kept from them")
    return replace(config, foreground="worker")
