"""What a server's components declare about running as tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from mcp.server import MCPServer

from mcp_celery.config import TaskConfig
from mcp_celery.errors import ConfigurationError
from mcp_celery.keys import TaskType
from mcp_celery.protocol import can_ask_first, declared_resource, list_components, may_be_repeated

_FORBIDDEN: Final = TaskConfig.from_bool(False)


class DeclaredComponents:
    """What components declare, by type and name.

    Args:
        default: What tools declare that say nothing themselves.
    """

    def __init__(self, default: TaskConfig) -> None:
        self._default = default
        self._declared: dict[tuple[TaskType, str], TaskConfig] = {}

    def declare(self, task_type: TaskType, component: str, config: TaskConfig) -> None:
        """Note what a component declares."""
        self._declared[task_type, component] = config

    def withdraw(self, task_type: TaskType, component: str) -> None:
        """Forget a component."""
        self._declared.pop((task_type, component), None)

    def config(self, server: MCPServer[Any], task_type: TaskType, identifier: str) -> tuple[str, TaskConfig]:
        """What a component declares.

        Args:
            server: Whose component it is.
            task_type: Its type.
            identifier: Its name, or a resource's URI.

        Returns:
            What it was declared as (its name, URI or URI template), and its configuration. A tool that hints that it
            reads only or may be repeated has ``acks_late``.
        """
        declared_as = identifier
        if task_type == "resource":
            declared_as = declared_resource(server, identifier) or identifier
        config = self._config_of(task_type, declared_as)
        if not config.acks_late and task_type == "tool" and may_be_repeated(server, identifier):
            config = replace(config, acks_late=True)
        return declared_as, config

    def task_types(self, server: MCPServer[Any]) -> frozenset[TaskType]:
        """The kinds of components of which at least one may run as a task."""
        return frozenset(
            task_type
            for task_type, component, _ in list_components(server)
            if self._config_of(task_type, component).supports_tasks()
        )

    def _config_of(self, task_type: TaskType, declared_as: str) -> TaskConfig:
        default = self._default if task_type == "tool" else _FORBIDDEN
        return self._declared.get((task_type, declared_as), default)

    def that_run(self, server: MCPServer[Any]) -> dict[tuple[TaskType, str], TaskConfig]:
        """A server's components that may run as tasks, with what they declare.

        Raises:
            ConfigurationError: A declared component does not exist, or no worker could run its function.
        """
        found: dict[tuple[TaskType, str], TaskConfig] = {}
        missing = dict(self._declared)
        for task_type, component, fn in list_components(server):
            config = self._config_of(task_type, component)
            missing.pop((task_type, component), None)
            if config.supports_tasks():
                _check(config, task_type, component, fn)
                found[task_type, component] = config
        for task_type, component in missing:
            raise ConfigurationError(f"the MCP server {server.name!r} has no {task_type} {component!r}")
        return found


def _check(config: TaskConfig, task_type: TaskType, component: str, fn: Callable[..., Any] | None) -> None:
    if config.foreground == "worker" and task_type != "tool":
        raise ConfigurationError(
            f"{component!r} cannot run on a worker in the foreground, which only a tool can; remove foreground='worker'"
        )
    if fn is None:
        return
    config.validate_function(fn, component)
    if config.ask == "before" and not (task_type == "tool" and can_ask_first(fn)):
        raise ConfigurationError(
            f"{component!r} cannot ask before it is a task: only a tool can whose return annotation "
            "admits InputRequiredResult, or that has Resolve(…) parameters; remove ask='before'"
        )
