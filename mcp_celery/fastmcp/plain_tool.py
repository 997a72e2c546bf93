"""Tools that this package adds to a FastMCP server, made of functions for the SDK: exposed jobs, polling tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from fastmcp.exceptions import ToolError, ValidationError
from fastmcp.server.dependencies import get_context
from fastmcp.tools.base import InputRequiredToolResult, Tool, ToolResult
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError as SDKToolError
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp_types import CallToolRequestParams, InputRequiredResult
from pydantic import PrivateAttr
from pydantic import ValidationError as PydanticValidationError

from mcp_celery.engine import JSONObject
from mcp_celery.fastmcp.private import request_of


class PlainTool(Tool):
    """A tool whose function is one for the SDK's ``MCPServer``."""

    _function: Callable[..., Any] = PrivateAttr()
    _metadata: FuncMetadata = PrivateAttr()

    @classmethod
    def of(cls, function: Callable[..., Any], metadata: FuncMetadata, **options: Any) -> PlainTool:
        """Make one.

        Args:
            function: Its function.
            metadata: How its arguments are validated, and its results converted.
            **options: As for ``Tool``.
        """
        output = metadata.output_schema
        if output is not None and metadata.wrap_output:
            output = {**output, "x-fastmcp-wrap-result": True}  # FastMCP's clients unwrap it
        made = cls(parameters=metadata.arg_model.model_json_schema(by_alias=True), output_schema=output, **options)
        made._function, made._metadata = function, metadata
        return made

    def errors_of(self, arguments: JSONObject) -> list[str]:
        """Why it would not take arguments, in short texts without the values."""
        try:
            self._metadata.validate_arguments(arguments)
        except PydanticValidationError as error:
            found = error.errors(include_url=False, include_input=False)
            return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found]
        return []

    async def run(self, arguments: dict[str, Any]) -> ToolResult:
        try:
            validated = self._metadata.validate_arguments(arguments)
        except PydanticValidationError as error:
            raise ValidationError("; ".join(self.errors_of(arguments))) from error
        names = context_parameters(self._function)
        try:
            result = self._metadata.convert_result(
                await self._function(**validated, **dict.fromkeys(names, self._context(arguments)))
            )
        except SDKToolError as error:
            raise ToolError(str(error)) from error
        if isinstance(result, InputRequiredResult):
            return InputRequiredToolResult(result)
        return ToolResult.from_mcp_result(result)

    def _context(self, arguments: dict[str, Any]) -> Context[Any, Any]:
        """The SDK's context of the running request."""
        here = get_context()
        params = CallToolRequestParams(
            name=self.name,
            arguments=arguments,
            input_responses=here.input_responses,
            request_state=here.request_state,
        )
        return Context(request_context=request_of(here), input_params=params)


def context_parameters(function: Callable[..., Any]) -> Sequence[str]:
    """The parameters of a function that are annotated as the SDK's ``Context``."""
    hints = get_type_hints(function).items()
    return [name for name, hint in hints if isinstance(hint, type) and issubclass(hint, Context)]
