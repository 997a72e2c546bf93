"""Declarations of a server's components about running as tasks."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final

from mcp.shared.exceptions import MCPError

from mcp_celery.components.fingerprint import fingerprint_of
from mcp_celery.components.source import Component, ComponentSource, RequestMeta
from mcp_celery.config import TaskConfig
from mcp_celery.engine import JSONObject
from mcp_celery.errors import ConfigurationError
from mcp_celery.keys import TaskType

ComponentKey = tuple[TaskType, str]
"""A component's type, and what it is declared as."""

CONFIG_SECONDS: Final = 1.0
"""How old the configuration may be that a look at an existing task needs. Some servers ask their providers for it."""
_MOST_RECENT: Final = 1_000
_FORBIDDEN: Final = TaskConfig.from_bool(False)


@dataclass(frozen=True, slots=True)
class DeclaredComponent:
    """A component that a request names, with its effective configuration.

    Attributes:
        task_type: Its kind.
        identifier: How the request names it.
        component: The component, None where the server has none of that name.
        config: Its configuration. A tool that hints that it reads only or may be repeated has ``acks_late``.
    """

    task_type: TaskType
    identifier: str
    component: Component | None
    config: TaskConfig

    @property
    def declared_as(self) -> str:
        """The declared identifier: its name, URI or URI template."""
        return self.identifier if self.component is None else self.component.identifier

    @property
    def fingerprint(self) -> str | None:
        """Its fingerprint, which identifies its version; None where the server has no such component."""
        return None if self.component is None else _fingerprint(self.component, self.config)

    @property
    def asks_first(self) -> bool:
        """Whether its first questions are asked in the foreground, before there is a task."""
        if self.component is None:
            return False
        return self.config.ask == "before" or (self.config.ask is None and self.component.returns_questions)

    async def accepts(self, arguments: JSONObject) -> bool:
        """Whether it takes these arguments and ignores none of them."""
        if self.component is None:
            return False
        try:
            refusal = await self.component.refusal(arguments)
        except MCPError:
            return False  # the validator's own answer
        return refusal is None and self.declared_arguments(arguments) == arguments

    async def refusal(self, arguments: JSONObject) -> str | None:
        """Check a request before any state exists, as :meth:`Component.refusal`; also that there is the component."""
        if self.component is None:
            return f"Unknown {self.task_type}: {self.identifier}"
        return await self.component.refusal(arguments)

    def declared_arguments(self, arguments: JSONObject) -> JSONObject:
        """As :meth:`Component.declared_arguments`."""
        return arguments if self.component is None else self.component.declared_arguments(arguments)


@dataclass(frozen=True, slots=True)
class ComponentVersion:
    """A version of a component that may run as a task.

    Attributes:
        key: The component.
        config: Its configuration.
        fingerprint: Its fingerprint.
    """

    key: ComponentKey
    config: TaskConfig
    fingerprint: str


class DeclaredComponents:
    """Joins the components of a server with what is declared about them.

    Args:
        source: Whose components they are.
        declarations: What was declared by name. It may change later. It overrides what a component says itself.
        default: What tools declare that say nothing, here or there.
    """

    def __init__(
        self, source: ComponentSource, declarations: Mapping[ComponentKey, TaskConfig], default: TaskConfig
    ) -> None:
        self.source = source
        self._declarations = declarations
        self._default = default
        # A plain mapping: worker threads ask as well as the event loop.
        self._recent: dict[ComponentKey, tuple[float, tuple[str, TaskConfig]]] = {}
        self._listed: tuple[float, Mapping[ComponentKey, tuple[str, TaskConfig]]] = (0.0, {})
        self._seen_scopes: frozenset[str] = frozenset()

    async def find(self, task_type: TaskType, identifier: str, meta: RequestMeta | None = None) -> DeclaredComponent:
        """Find the component that a request names, and its configuration.

        Args:
            task_type: Its type.
            identifier: Its name, or a resource's URI.
            meta: The request's ``_meta``, None where only the component is known.
        """
        component = await self.source.find(task_type, identifier, meta)
        if component is None:
            config = self._config_of(task_type, identifier, None)
            return DeclaredComponent(task_type, identifier, None, config)
        return DeclaredComponent(task_type, identifier, component, self._effective(component))

    async def config(self, task_type: TaskType, identifier: str) -> tuple[str, TaskConfig]:
        """The declared identifier of an existing task's component, and its configuration.

        It is what the server has, whatever the current client may see of it, and may be :data:`CONFIG_SECONDS` old. Its
        ``required_scopes`` are those of all versions, of any of which the task may be. Where the server has no such
        component (that is not remembered), they are those of all components that this process has seen of the server:
        which of them the task needs is not known.

        Args:
            task_type: Its type.
            identifier: Its name, or a resource's URI.
        """
        key: ComponentKey = (task_type, identifier)
        listed = await self._as_listed()
        if key in listed:
            return listed[key]
        now = time.monotonic()
        recent = self._recent.get(key)
        if recent is not None and now < recent[0]:
            return recent[1]
        found = await self.find(task_type, identifier)  # of a resource template's
        known = found.declared_as, found.config
        if found.component is None:
            scopes = _together(self._seen_scopes, found.config.required_scopes)
            return found.declared_as, replace(found.config, required_scopes=scopes)
        if found.component.version is None:
            if len(self._recent) >= _MOST_RECENT:
                self._recent.clear()
            self._recent[key] = now + CONFIG_SECONDS, known
        return known

    async def _as_listed(self) -> Mapping[ComponentKey, tuple[str, TaskConfig]]:
        """The components that the server lists, as :meth:`config` describes them."""
        until, known = self._listed
        if time.monotonic() < until:
            return known
        found: dict[ComponentKey, tuple[str, TaskConfig]] = {}
        for one in await self.source.components():
            key: ComponentKey = (one.task_type, one.identifier)
            config = self._effective(one)
            if key in found:  # the default version came first
                first = found[key][1]
                config = replace(first, required_scopes=_together(first.required_scopes, config.required_scopes))
            found[key] = one.identifier, config
            self._seen_scopes |= {*config.required_scopes}
        self._listed = time.monotonic() + CONFIG_SECONDS, found
        return found

    async def task_types(self) -> frozenset[TaskType]:
        """The kinds of components of which at least one may run as a task."""
        return frozenset(
            one.task_type
            for one in await self.source.components()
            if self._config_of(one.task_type, one.identifier, one.config).supports_tasks()
        )

    async def that_run(self) -> dict[ComponentKey, TaskConfig]:
        """The components that may run as tasks, with their configuration.

        Raises:
            ConfigurationError: A declared component does not exist, or no worker could run its function.
        """
        found: dict[ComponentKey, TaskConfig] = {}
        missing = dict(self._declarations)
        for one in await self.source.components():
            key = (one.task_type, one.identifier)
            config = self._config_of(*key, one.config)
            missing.pop(key, None)
            if config.supports_tasks():
                _check(config, one)
                found.setdefault(key, config)
        for task_type, component in missing:
            raise ConfigurationError(f"the MCP server {self.source.name!r} has no {task_type} {component!r}")
        return found

    async def versions_that_run(self) -> list[ComponentVersion]:
        """Each version of the components that may run as tasks."""
        found: list[ComponentVersion] = []
        for one in await self.source.components():
            key = (one.task_type, one.identifier)
            config = self._config_of(*key, one.config)
            if config.supports_tasks():
                found.append(ComponentVersion(key, config, _fingerprint(one, config)))
        return found

    def _effective(self, component: Component) -> TaskConfig:
        config = self._config_of(component.task_type, component.identifier, component.config)
        return replace(config, acks_late=True) if component.may_be_repeated and not config.acks_late else config

    def _config_of(self, task_type: TaskType, declared_as: str, own: TaskConfig | None) -> TaskConfig:
        default = self._default if task_type == "tool" else _FORBIDDEN
        return self._declarations.get((task_type, declared_as), default if own is None else own)


def _together(*scopes: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted({one for some in scopes for one in some}))


def _fingerprint(component: Component, config: TaskConfig) -> str:
    version = component.version if config.version is None else config.version
    return fingerprint_of(component.task_type, component.identifier, version, component.input_schema)


def _check(config: TaskConfig, component: Component) -> None:
    task_type, name = component.task_type, component.identifier
    if config.foreground == "worker" and task_type != "tool":
        raise ConfigurationError(
            f"{name!r} cannot run on a worker in the foreground, which only a tool can; remove foreground='worker'"
        )
    if component.function is None:
        return
    config.validate_function(component.function, name)
    if config.ask == "before" and not (task_type == "tool" and component.can_ask_first):
        raise ConfigurationError(
            f"{name!r} cannot ask before it is a task: only a tool can whose return annotation "
            "admits InputRequiredResult, or that has Resolve(…) parameters; remove ask='before'"
        )
