"""Checking a tool's arguments as FastMCP does when it runs the tool, without running it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from fastmcp.server.dependencies import without_injected_parameters
from fastmcp.tools.base import Tool
from fastmcp.tools.function_tool import FunctionTool
from fastmcp.tools.tool_transform import TransformedTool
from fastmcp.utilities.types import NotSet
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_json

from mcp_celery.engine import JSONObject


def errors_of(tool: Tool, arguments: JSONObject, *, strict: bool) -> list[str]:
    """Why a tool would not take arguments, in short texts without the values.

    Args:
        tool: The tool; of a mounted one that of its own server.
        arguments: From the wire.
        strict: Whether the tool's server validates strictly.

    Returns:
        Nothing where it would, or where only running it shows that.
    """
    if isinstance(tool, FunctionTool):
        return [_shown(one) for one in _rejections(tool, arguments, strict=strict)]
    if isinstance(tool, TransformedTool) and tool.fn is tool.forwarding_fn:
        return _errors_of_transformed(tool, arguments, strict=strict)
    return []


def _errors_of_transformed(tool: TransformedTool, arguments: JSONObject, *, strict: bool) -> list[str]:
    """The arguments of the tool underneath, for a tool that only renames, hides or presets them."""
    shown: Mapping[str, Any] = tool.parameters.get("properties", {})
    errors = [f"{name}: unexpected argument" for name in sorted(arguments.keys() - shown.keys())]
    missing = [name for name in tool.parameters.get("required", ()) if name not in arguments]
    errors += [f"{name}: missing required argument" for name in missing]
    if errors:
        return errors
    passed: JSONObject = {}
    made: set[str] = set()
    for name in tool.parent_tool.parameters.get("properties", {}):
        transform = tool.transform_args.get(name)
        new = name if transform is None or transform.name is NotSet else str(transform.name)
        if transform is not None and transform.hide:
            if transform.default is not NotSet:
                passed[name] = transform.default
            elif transform.default_factory is not NotSet:
                made.add(name)  # by a function, when the tool runs
        elif new in arguments:
            passed[name] = arguments[new]
        elif "default" in shown.get(new, {}):
            passed[name] = shown[new]["default"]
    if made:
        return []
    return errors_of(tool.parent_tool, passed, strict=strict)


def _rejections(tool: FunctionTool, arguments: JSONObject, *, strict: bool) -> list[ErrorDetails]:
    adapter = _checking(without_injected_parameters(tool.fn, run_in_thread=tool.run_in_thread))
    try:
        if strict:  # as FastMCP: JSON's spellings of what is no JSON are no laxity
            adapter.validate_json(to_json(arguments), strict=True)
        else:
            adapter.validate_python(arguments)
    except ValidationError as error:
        return error.errors(include_url=False, include_input=False)
    return []


@functools.lru_cache(maxsize=1024)
def _checking(fn: Callable[..., Any]) -> TypeAdapter[Any]:
    """Validates the arguments of a function, and calls one of the same signature that does nothing."""

    def nothing(*_: Any, **__: Any) -> None:
        return None

    signature = inspect.signature(fn)
    hints = _hints_of(fn)
    standing: Any = nothing
    standing.__signature__ = signature
    standing.__annotations__ = {
        name: hints.get(name, parameter.annotation)
        for name, parameter in signature.parameters.items()
        if name in hints or parameter.annotation is not inspect.Parameter.empty
    }
    return TypeAdapter(standing)


def _hints_of(fn: Callable[..., Any]) -> dict[str, Any]:
    target = fn
    while isinstance(target, functools.partial):
        target = target.func
    try:
        return get_type_hints(target, include_extras=True)
    except TypeError:  # an object that can be called
        return {}


def _shown(error: ErrorDetails) -> str:
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
