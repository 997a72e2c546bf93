"""Exposed tools as tools of a server.

The SDK makes schema and validation of a function's signature. An exposed tool has no function in the server, so it gets
a stand-in with the signature of the job, without the parameters that no caller sees.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, NoReturn, cast

from mcp.server.mcpserver.exceptions import InvalidSignature
from mcp.server.mcpserver.utilities.func_metadata import ArgModelBase, FuncMetadata
from mcp_types import ToolAnnotations
from pydantic import BaseModel, create_model
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

from mcp_celery.components.source import ComponentSource
from mcp_celery.errors import ConfigurationError
from mcp_celery.exposed.tools import ExposedTool

_NO_SCHEMA: Final = (PydanticUserError, PydanticUndefinedAnnotation)


def add_tool(source: ComponentSource, exposed: ExposedTool, annotations: ToolAnnotations | None) -> FuncMetadata:
    """Add an exposed tool to a server.

    Returns:
        How its arguments are validated, and its results converted.

    Raises:
        ConfigurationError: The server has a tool of that name, or no schema can be made of the signature or the model;
            nothing was added.
    """
    offer = exposed.offer
    if source.has_tool(offer.tool_name):
        raise ConfigurationError(f"the MCP server {source.name!r} has a tool {offer.tool_name!r} already; give name=…")
    arguments = None if offer.model is None else _arguments_model(offer.tool_name, offer.model)
    try:
        return source.add_tool(
            _stand_in(offer.tool_name, exposed.signature, offer.description),
            offer.tool_name,
            description=offer.description,
            annotations=annotations,
            structured_output=offer.structured_output,
            arguments=arguments,
        )
    except (InvalidSignature, *_NO_SCHEMA) as error:
        raise ConfigurationError(
            f"{offer.tool_name!r} cannot be exposed: no schema can be made of its signature ({_first_line(error)}); "
            "describe it with arguments=…"
        ) from error


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


def _arguments_model(name: str, model: type[BaseModel]) -> type[ArgModelBase]:
    """A user's model for the arguments of a job, as the SDK takes it."""
    try:
        made = cast("type[ArgModelBase]", create_model(model.__name__, __base__=(model, ArgModelBase)))
        made.model_json_schema(by_alias=True)  # raises where there is none
    except _NO_SCHEMA as error:
        raise ConfigurationError(
            f"{name!r} cannot be exposed: no schema can be made of arguments={model.__name__} ({_first_line(error)})"
        ) from error
    return made


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
