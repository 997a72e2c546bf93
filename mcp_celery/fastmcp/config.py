"""``TaskConfig`` of FastMCP's tools: what FastMCP reads of it, and this package's options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec

from fastmcp.utilities.tasks import DEFAULT_POLL_INTERVAL
from fastmcp.utilities.tasks import TaskConfig as FastMCPTaskConfig

from mcp_celery import config

Options = ParamSpec("Options")


def _takes_options_of(
    _: Callable[Options, config.TaskConfig],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, Options], None]]:
    """Give type checkers the parameters of `mcp_celery.TaskConfig`, which are listed there alone."""
    return lambda init: init


class TaskConfig(FastMCPTaskConfig):
    """How a tool runs as a task. It takes what `mcp_celery.TaskConfig` takes, and goes where FastMCP's goes.

    ```python
    @mcp.tool(task=TaskConfig(queue="gpu", time_limit=600))
    def train(dataset: str) -> str: ...  # unlike with task=True, the function need not be `async def`
    ```

    Attributes:
        options: This package's configuration.

    Raises:
        ConfigurationError: A value is out of range; the message names it.
    """

    options: config.TaskConfig

    @_takes_options_of(config.TaskConfig)
    def __init__(self, **options: Any) -> None:
        self.options = config.TaskConfig(**options)
        milliseconds = self.options.poll_interval_ms
        interval = DEFAULT_POLL_INTERVAL if milliseconds is None else timedelta(milliseconds=milliseconds)
        FastMCPTaskConfig.__init__(self, mode=self.options.mode, poll_interval=interval)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskConfig) and self.options == other.options

    __hash__ = None  # pyright: ignore[reportAssignmentType] - like FastMCP's, it can be changed

    def __repr__(self) -> str:
        return repr(self.options)

    def validate_function(self, fn: Callable[..., Any], name: str) -> None:
        """Refuse what no worker can run. Sync functions and generators are welcome: FastMCP runs both.

        Args:
            fn: The tool's function.
            name: The tool's name.

        Raises:
            ConfigurationError: The function is a lambda without a name.
        """
        target = fn
        while isinstance(target, functools.partial):
            target = target.func
        if not (inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target)):
            self.options.validate_function(fn, name)


def options_of(declared: FastMCPTaskConfig) -> config.TaskConfig:
    """A tool's declaration, as this package's configuration.

    FastMCP's own ``TaskConfig`` always has a poll interval. Its default counts as none, so that the server's setting
    holds.
    """
    if isinstance(declared, TaskConfig):
        return declared.options
    interval = None if declared.poll_interval == DEFAULT_POLL_INTERVAL else declared.poll_interval
    return config.TaskConfig(mode=declared.mode, poll_interval=interval)
