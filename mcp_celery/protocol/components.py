"""A server's components as its managers hold them. Provisional seam: the SDK lists no functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ResourceError

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


def accepts_arguments(server: MCPServer[Any], tool_name: str, arguments: JSONObject) -> bool:
    """Whether a foreground call of a tool would get past its arguments."""
    managers: Any = server
    tool = managers._tool_manager.get_tool(tool_name)
    if tool is None:
        return False
    try:
        tool.fn_metadata.validate_arguments(arguments)
    except Exception:  # noqa: BLE001 - a validator may raise anything; the foreground call repeats and reports it
        return False
    return True


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
