"""A server's components as its managers hold them. Provisional seam: the SDK lists no functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final, cast

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError
from mcp.server.mcpserver.resolve import find_resolved_parameters, returns_input_required
from mcp.shared.exceptions import MCPError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, ValidationError

from mcp_celery.config import AskWhen
from mcp_celery.engine import JSONObject
from mcp_celery.keys import TaskType


def list_components(server: MCPServer[Any]) -> Iterator[tuple[TaskType, str, Callable[..., Any] | None]]:
    """Every component as ``(type, identifier, function)``; templates by their template, resources without function as
    None.
    """
    managers: Any = server
    for tool in managers._tool_manager.list_tools():
        yield "tool", tool.name, tool.fn
    for prompt in managers._prompt_manager.list_prompts():
        yield "prompt", prompt.name, prompt.fn
    for resource in managers._resource_manager.list_resources():
        yield "resource", str(resource.uri), getattr(resource, "fn", None)
    for template in managers._resource_manager.list_templates():
        yield "resource", template.uri_template, template.fn


def asks_first(server: MCPServer[Any], tool_name: str, when: AskWhen | None) -> bool:
    """Whether a tool's first questions are asked in the foreground.

    Args:
        server: The tool's server.
        tool_name: Its name.
        when: What it declares, None where it says nothing.
    """
    managers: Any = server
    tool = managers._tool_manager.get_tool(tool_name)
    return tool is not None and (when == "before" or (when is None and _returns_questions(tool.fn)))


def _returns_questions(fn: Callable[..., Any]) -> bool:
    # A function's annotations are evaluated once: that costs as much as a tenth of what a submission costs the server.
    try:
        return _looks_once(fn)
    except TypeError:  # an object that can be called, but not hashed
        return returns_input_required(fn)


_looks_once: Final = lru_cache(maxsize=1024)(returns_input_required)


def can_ask_first(fn: Callable[..., Any]) -> bool:
    """Whether a function can ask before it does its work: it returns questions, or has ``Resolve(…)`` parameters."""
    return returns_input_required(fn) or bool(find_resolved_parameters(fn))


def refusal(server: MCPServer[Any], task_type: TaskType, component: str, arguments: JSONObject) -> str | None:
    """Why a foreground request would not get past its arguments, in one line without their values; None if it would."""
    managers: Any = server
    if task_type == "resource":
        return None if declared_resource(server, component) else f"Unknown resource: {component}"
    if task_type == "prompt":
        return _prompt_refusal(managers._prompt_manager.get_prompt(component), component, arguments)
    return _tool_refusal(managers._tool_manager.get_tool(component), component, arguments)


def _prompt_refusal(prompt: Any, name: str, arguments: JSONObject) -> str | None:
    if prompt is None:
        return f"Unknown prompt: {name}"
    if missing := sorted({one.name for one in prompt.arguments or () if one.required} - arguments.keys()):
        return f"Missing required arguments: {', '.join(missing)}"
    unknown = arguments.keys() - {one.name for one in prompt.arguments or ()}
    if unknown and not _takes_any(prompt.fn):  # its function would be called with them, and raise
        return f"Arguments that prompt {name!r} does not declare: {', '.join(map(repr, sorted(unknown)))}"[:300]
    return None


def _takes_any(fn: Callable[..., Any]) -> bool:
    return any(one.kind is one.VAR_KEYWORD for one in inspect.signature(fn).parameters.values())


def _tool_refusal(tool: Any, name: str, arguments: JSONObject) -> str | None:
    if tool is None:
        return f"Unknown tool: {name}"
    try:
        tool.fn_metadata.validate_arguments(arguments)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)]
        return f"Invalid arguments for tool {name!r}: {'; '.join(reasons)}"
    except MCPError:
        raise  # the validator's own answer, as in the foreground
    except Exception:  # noqa: BLE001 - a validator may raise anything
        return f"Invalid arguments for tool {name!r}"
    return None


def declared_arguments(
    server: MCPServer[Any], task_type: TaskType, component: str, arguments: JSONObject
) -> JSONObject:
    """Those of a request's arguments that its component declares; the SDK ignores the others.

    A tool whose model takes any name, or looks at all of the input itself, declares all of them.
    """
    managers: Any = server
    tool = managers._tool_manager.get_tool(component) if task_type == "tool" else None
    names = None if tool is None else _declared_names(tool.fn_metadata.arg_model)
    return arguments if names is None else {name: value for name, value in arguments.items() if name in names}


@lru_cache(maxsize=1024)
def _declared_names(model: type[BaseModel]) -> frozenset[str] | None:
    """The names under which a model reads its fields, None for any."""
    if model.model_config.get("extra") in ("allow", "forbid") or model.__pydantic_decorators__.model_validators:
        return None
    names = set[str]()
    for name, info in model.model_fields.items():
        names.add(name)
        for alias in (info.alias, info.validation_alias):
            if isinstance(alias, str):
                names.add(alias)
            elif alias is not None:
                return None  # a path into the input, or a choice of several
    return frozenset(names)


def tool_meta(server: MCPServer[Any], name: str) -> JSONObject:
    """A tool's ``meta``, empty for one that has none."""
    managers: Any = server
    tool = managers._tool_manager.get_tool(name)
    return {} if tool is None else tool.meta or {}


def has_tool(server: MCPServer[Any], name: str) -> bool:
    """Whether a server has a tool of that name."""
    managers: Any = server
    return managers._tool_manager.get_tool(name) is not None


def may_be_repeated(server: MCPServer[Any], tool_name: str) -> bool:
    """Whether a tool hints that it reads only, or that a second call with the same arguments changes nothing more."""
    managers: Any = server
    tool = managers._tool_manager.get_tool(tool_name)
    hints: ToolAnnotations | None = None if tool is None else tool.annotations
    return hints is not None and bool(hints.read_only_hint or hints.idempotent_hint)


def is_resumable(server: MCPServer[Any]) -> bool:
    """Whether a client that lost the stream of its answer can take it up again: the server has an event store."""
    try:
        return server.session_manager.event_store is not None
    except RuntimeError:  # it does not serve HTTP
        return False


def declared_resource(server: MCPServer[Any], uri: str) -> str | None:
    """What a URI was declared as: itself, or the template that it matches; None for neither."""
    managers: Any = server
    if any(str(resource.uri) == uri for resource in managers._resource_manager.list_resources()):
        return uri
    for template in managers._resource_manager.list_templates():
        try:
            if template.matches(uri) is not None:
                return cast(str, template.uri_template)
        except ResourceError:
            return None
    return None
