"""Exposed tools as the SDK's. Provisional seam: the tool manager of an ``MCPServer``.

The SDK makes schema and validation of a function's signature. An exposed tool has no function in the server, so it gets
a stand-in with the signature of the job, without the parameters that no caller sees.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn, cast

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import InvalidSignature
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase
from mcp_types import ToolAnnotations
from pydantic import BaseModel, create_model
from pydantic.errors import PydanticUserError

from mcp_celery.errors import ConfigurationError
from mcp_celery.exposed.tools import ExposedTool


def add_tool(server: MCPServer[Any], exposed: ExposedTool, annotations: ToolAnnotations | None) -> Tool:
    """Add an exposed tool to a server.

    Returns:
        It as the SDK holds it.

    Raises:
        ConfigurationError: The server has a tool of that name, or the SDK can make no schema of the signature.
    """
    offer = exposed.offer
    managers: Any = server
    if managers._tool_manager.get_tool(offer.tool_name) is not None:
        raise ConfigurationError(f"the MCP server {server.name!r} has a tool {offer.tool_name!r} already; give name=…")
    try:
        server.add_tool(
            _stand_in(offer.tool_name, exposed.signature, offer.description),
            offer.tool_name,
            description=offer.description,
            annotations=annotations,
            structured_output=offer.structured_output,
        )
    except (InvalidSignature, PydanticUserError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(
            f"{offer.tool_name!r} cannot be exposed: no schema can be made of its signature ({reason}); "
            "describe it with arguments=…"
        ) from error
    tool: Tool = managers._tool_manager.get_tool(offer.tool_name)
    if offer.model is not None:
        tool.fn_metadata.arg_model = _arguments_model(offer.model)
        tool.parameters = tool.fn_metadata.arg_model.model_json_schema(by_alias=True)
    return tool


def _stand_in(name: str, signature: inspect.Signature, description: str) -> Callable[..., Any]:
    """A function with a name, a signature and a docstring, for the SDK to read. It is never called."""

    async def exposed_job(**_: Any) -> NoReturn:
        raise RuntimeError("an exposed job runs in its own workers only")

    standing: Any = exposed_job
    standing.__name__ = standing.__qualname__ = name
    standing.__doc__ = description
    standing.__signature__ = signature
    standing.__annotations__ = {
        **{one.name: one.annotation for one in signature.parameters.values() if one.annotation is not one.empty},
        **({} if signature.return_annotation is signature.empty else {"return": signature.return_annotation}),
    }
    return standing


def _arguments_model(model: type[BaseModel]) -> type[ArgModelBase]:
    """A model that somebody wrote for the arguments of a job, as the SDK takes it."""
    return cast("type[ArgModelBase]", create_model(model.__name__, __base__=(model, ArgModelBase)))
