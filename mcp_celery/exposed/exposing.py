"""``expose``, ``expose_all`` and ``expose_canvas``: existing Celery jobs as tools, one by one or by an allowlist."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from celery import Celery
from mcp_types import ToolAnnotations
from pydantic import BaseModel

from mcp_celery.config import TaskConfig
from mcp_celery.errors import ConfigurationError
from mcp_celery.exposed.jobs import find_job, find_jobs, require_results
from mcp_celery.exposed.tools import (
    ExposedCanvas,
    ExposedJob,
    ExposedTool,
    Offer,
    config_of_canvas,
    config_of_job,
)

_AS_TASK: Final = TaskConfig()


class ToolDeclaration(Protocol):
    """What another kind of server has in the place of `TaskConfig`."""

    @property
    def options(self) -> TaskConfig:
        """The same, as a `TaskConfig`."""
        ...


class Exposing:
    """What can expose jobs: a server, or the tasks of one."""

    @abstractmethod
    def _exposing_app(self) -> Celery:
        """Whose jobs are exposed."""
        raise NotImplementedError

    @abstractmethod
    def add_exposed(self, exposed: ExposedTool, annotations: ToolAnnotations | None) -> None:
        """Let a tool be one of the server's.

        Raises:
            ConfigurationError: The server has a tool of that name.
        """
        raise NotImplementedError

    def _declared(self, task: TaskConfig | ToolDeclaration) -> TaskConfig:
        """What is declared of a tool's tasks.

        Raises:
            ConfigurationError: It is nothing that declares them.
        """
        if not isinstance(task, TaskConfig):
            raise ConfigurationError(f"an exposed tool takes task=TaskConfig(…), not task={task!r:.100}")
        return task

    def expose(  # noqa: PLR0913 - what a tool's declaration has, and what a job's has
        self,
        job: Any,
        *,
        name: str | None = None,
        description: str | None = None,
        task: TaskConfig | ToolDeclaration = _AS_TASK,
        arguments: type[BaseModel] | None = None,
        hide: Sequence[str] = (),
        fixed: Mapping[str, Any] | None = None,
        show_errors: Sequence[str | type[Exception]] = (),
        terminate: bool = False,
        keep_result: bool = False,
        annotations: ToolAnnotations | None = None,
        structured_output: bool | None = None,
    ) -> None:
        """Expose an existing Celery job as a tool. It runs in the workers that run it today, which need nothing new.

        Args:
            job: A task of the server's Celery app, or the name of one.
            name: Name of the tool. None: the job's, with ``_`` for each dot.
            description: What clients read. None: the job's docstring.
            task: How its tasks are kept and its messages sent. What is said there of the job itself is said where the
                job is declared.
            arguments: A model of the job's arguments. None: that of its signature and type hints, which a job that is
                known by its name only does not have.
            hide: Parameters that no caller sees; they keep their defaults.
            fixed: Parameters that no caller sees; they get these values.
            show_errors: Exceptions of the job, or their names, whose text the caller may see. Of all others it learns
                only that there was an error, as of a tool's.
            terminate: Whether a cancel also ends a job that runs (``revoke(terminate=True)``); else it goes on, and
                what becomes of it is dropped.
            keep_result: Whether a job that stores no result has to do so for the calls that come over MCP.
            annotations: As for a tool.
            structured_output: As for a tool.

        Raises:
            ConfigurationError: It cannot be exposed in this way; the message says why.
        """
        app = self._exposing_app()
        found = find_job(app, job)
        if not keep_result:
            require_results(app, found)
        tool_name = name or _tool_name(found.name)
        offer = Offer(
            tool_name=tool_name,
            description=_described(description, None if found.task is None else found.task.__doc__),
            config=config_of_job(self._declared(task), tool_name),
            model=arguments,
            structured_output=structured_output,
            show_errors=_names(show_errors),
        )
        exposed = ExposedJob(offer, app, found, hide=hide, fixed=fixed or {}, terminate=terminate)
        self.add_exposed(exposed, annotations)

    def expose_all(
        self,
        app: Celery,
        *,
        include: Sequence[str],
        exclude: Sequence[str] = (),
        task: TaskConfig | ToolDeclaration = _AS_TASK,
        terminate: bool = False,
    ) -> list[str]:
        """Expose the jobs of an app whose names are on an allowlist. Celery's own jobs and ours are never exposed.

        Args:
            app: The server's Celery app, whose modules are imported as a worker imports them.
            include: Names, or patterns as ``fnmatch`` reads them: ``["reports.*"]``.
            exclude: Those of them that are not exposed after all.
            task: As for `expose`, the same for every job.
            terminate: As for `expose`.

        Returns:
            The names of the tools.

        Raises:
            ConfigurationError: The app is not the server's, a pattern matches no job, or one of the jobs cannot be
                exposed; the message says why.
        """
        if app is not self._exposing_app():
            raise ConfigurationError(
                f"expose_all: the Celery app {app.main!r} is not the server's: give it to the server as celery=…"
            )
        if isinstance(include, str) or not include:
            raise ConfigurationError("expose_all(include=…): expected a list of names or patterns, as ['reports.*']")
        found = find_jobs(app, include, exclude)
        for job in found:
            self.expose(job.task, task=task, terminate=terminate)
        return [_tool_name(job.name) for job in found]

    def expose_canvas(
        self,
        build: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        task: TaskConfig | ToolDeclaration = _AS_TASK,
        arguments: type[BaseModel] | None = None,
        show_errors: Sequence[str | type[Exception]] = (),
        terminate: bool = False,
        annotations: ToolAnnotations | None = None,
    ) -> None:
        """Expose a chain, group or chord as one tool. Its progress counts the jobs that are done.

        Args:
            build: Makes the signature of a call's arguments, in the server: ``def build(year: int) -> Signature``. Its
                signature is the tool's.
            name: Name of the tool. None: the function's.
            description: What clients read. None: the function's docstring.
            task: How its tasks are kept. Queues and limits are set on the signatures.
            arguments: A model of the arguments. None: that of the function's signature and type hints.
            show_errors: As for `expose`.
            terminate: As for `expose`.
            annotations: As for a tool.

        Raises:
            ConfigurationError: It cannot be exposed in this way; the message says why.
        """
        tool_name = name or getattr(build, "__name__", "")
        if tool_name in ("", "<lambda>"):
            raise ConfigurationError("expose_canvas: a function without a name needs name=…")
        offer = Offer(
            tool_name=tool_name,
            description=_described(description, build.__doc__),
            config=config_of_canvas(self._declared(task), tool_name),
            model=arguments,
            structured_output=None,
            show_errors=_names(show_errors),
        )
        self.add_exposed(ExposedCanvas(offer, self._exposing_app(), build, terminate=terminate), annotations)


def _tool_name(job_name: str) -> str:
    return job_name.replace(".", "_")


def _described(description: str | None, docstring: str | None) -> str:
    return inspect.cleandoc(docstring or "") if description is None else description


def _names(exceptions: Sequence[str | type[Exception]]) -> list[str]:
    return [one if isinstance(one, str) else one.__qualname__ for one in exceptions]
