"""Makes tools smaller that still fail: a whole module of candidates at a time, since starting servers takes seconds."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final, TypeVar, cast

from tests.differential.tools import Tool

MODULE: Final = 120
"""Candidates of a module."""
ROUNDS: Final = 40
"""At most so many modules are started."""

Node = TypeVar("Node", bound=ast.AST)
Failures = Mapping[Tool, str]
"""How each tool fails, of those that do."""
Examine = Callable[[Sequence[Tool]], Awaitable[Failures]]


async def shrunk(failures: Failures, examine: Examine) -> list[Tool]:
    """Make each of some tools as small as it fails in its way.

    Args:
        failures: Where to begin.
        examine: Runs a module of tools.

    Returns:
        In the order of the tools.
    """
    smallest, kinds = list(failures), list(failures.values())
    steps = {number: candidates(tool) for number, tool in enumerate(smallest)}
    for _ in range(ROUNDS):
        tried: dict[Tool, int] = {}
        for number in list(steps):
            fresh = list(islice(steps[number], MODULE // len(steps)))
            tried.update(dict.fromkeys(fresh, number))
            if not fresh:
                del steps[number]
        if not tried:
            break
        failed = await examine(list(tried))
        for tool in sorted(failed, key=lambda tool: tool.complexity, reverse=True):
            number = tried[tool]
            if failed[tool] == kinds[number]:
                smallest[number], steps[number] = tool, candidates(tool)
    return smallest


def candidates(tool: Tool) -> Iterator[Tool]:
    """Tools that are simpler than one by one step, the smallest first, each once."""
    simpler = {one for one in _simpler(tool) if one.complexity < tool.complexity and one.is_fatal == tool.is_fatal}
    yield from sorted(simpler, key=lambda one: one.complexity)


def _simpler(tool: Tool) -> Iterator[Tool]:
    if tool.structured_output is not None:
        yield replace(tool, structured_output=None)
    for arguments in _simpler_json(tool.call()):
        yield replace(tool, arguments=json.dumps(arguments))
    yield from _without_parameters(tool)
    for tree in _simpler_functions(tool.function):
        yield replace(tool, source=ast.unparse(tree))
    # The expressions of the tree, each replaced by what is simpler than it: in one copy, since they are many.
    function = copy.deepcopy(tool.function)
    for parent, node in list(_expressions(function)):
        for simpler in _simpler_expressions(node):
            _put(parent, node, simpler)
            yield replace(tool, source=ast.unparse(function))
            _put(parent, simpler, node)


def _without_parameters(tool: Tool) -> Iterator[Tool]:
    for index in range(len(tool.function.args.kwonlyargs)):
        function = copy.deepcopy(tool.function)
        parameter = function.args.kwonlyargs.pop(index)
        function.args.kw_defaults.pop(index)
        given = {name: value for name, value in tool.call().items() if name != parameter.arg}
        yield replace(tool, source=ast.unparse(function), arguments=json.dumps(given))


def _simpler_functions(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    if function.returns is not None:
        yield _changed(function, lambda one: setattr(one, "returns", None))
    for index in range(len(function.body) if len(function.body) > 1 else 0):
        yield _changed(function, lambda one, index=index: one.body.pop(index))
    for index, default in enumerate(function.args.kw_defaults):
        if default is not None:
            yield _changed(function, lambda one, index=index: one.args.kw_defaults.__setitem__(index, None))
    for index in range(len(function.args.kwonlyargs)):
        yield _changed(function, lambda one, index=index: setattr(one.args.kwonlyargs[index], "annotation", None))
    if isinstance(function, ast.AsyncFunctionDef) and not any(isinstance(one, ast.Await) for one in ast.walk(function)):
        yield ast.FunctionDef(**dict(ast.iter_fields(function)), lineno=1)


def _changed(tree: Node, change: Callable[[Node], object]) -> Node:
    copied = copy.deepcopy(tree)
    change(copied)
    return copied


def _expressions(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.expr]]:
    """Every expression of a tree, with the node that it is a part of."""
    for parent in ast.walk(tree):
        for child in ast.iter_child_nodes(parent):
            if isinstance(child, ast.expr):
                yield parent, child


def _put(parent: ast.AST, old: ast.expr, new: ast.expr) -> None:
    for name, value in ast.iter_fields(parent):
        if value is old:
            setattr(parent, name, new)
        elif isinstance(value, list):
            setattr(parent, name, [new if one is old else one for one in cast("list[Any]", value)])


def _simpler_expressions(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in _simpler_constants(node.value))
        return
    yield from (ast.Constant(value) for value in (0, None, ""))
    for child in ast.walk(node):
        if child is not node and isinstance(child, ast.expr):
            yield copy.deepcopy(child)
    yield from _shorter(node)


def _shorter(node: ast.expr) -> Iterator[ast.expr]:
    """The same without one of its parts."""
    if isinstance(node, ast.Dict):
        for index in range(len(node.keys)):
            yield ast.Dict(_without(node.keys, index), _without(node.values, index))
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        for index in range(len(node.elts)):
            yield _changed(node, lambda one, index=index: one.elts.pop(index))
    if isinstance(node, ast.Call):
        for index in range(len(node.args)):
            yield ast.Call(node.func, _without(node.args, index), node.keywords)
        for index in range(len(node.keywords)):
            yield ast.Call(node.func, node.args, _without(node.keywords, index))


def _without(items: Sequence[Any], index: int) -> list[Any]:
    return [*items[:index], *items[index + 1 :]]


def _simpler_constants(value: object) -> Iterable[Any]:
    if isinstance(value, str):
        halves = [value[: len(value) // 2], value[len(value) // 2 :]] if value else []
        return [*halves, *(value[:index] + value[index + 1 :] for index in range(min(len(value), 40)))]
    if isinstance(value, bytes):
        return [value[: len(value) // 2]] if value else []
    if isinstance(value, bool) or value is None:
        return []
    if isinstance(value, int | float):
        return [0, 1, int(value // 2)] if abs(value) > 1 else []
    return []


def _simpler_json(value: Any) -> Iterator[Any]:
    """JSON values with one part less or simpler."""
    if isinstance(value, dict):
        found = cast("dict[str, Any]", value)
        for name in found:
            yield {key: one for key, one in found.items() if key != name}
            for simpler in _simpler_json(found[name]):
                yield {**found, name: simpler}
    elif isinstance(value, list):
        items = cast("list[Any]", value)
        for index, one in enumerate(items):
            yield _without(items, index)
            yield one
            for simpler in _simpler_json(one):
                yield [*items[:index], simpler, *items[index + 1 :]]
    else:
        yield from _simpler_constants(value)
