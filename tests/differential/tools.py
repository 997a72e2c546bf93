"""A tool as data: the source of its function and the arguments of its call; and many of them as a module."""

from __future__ import annotations

import ast
import json
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import indent
from typing import Any, Final

FATAL: Final = frozenset(
    {"CancelledError", "Fatal", "GeneratorExit", "KeyboardInterrupt", "SystemExit", "cancels_itself", "exits"}
)
"""Exceptions that are no ``Exception``, and functions that raise them. A plain server does not survive them, so it is
never called with them.
"""
_HEAD: Final = '''"""Tools of the differential test."""

from __future__ import annotations

import re
import warnings
from asyncio import CancelledError
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping
from datetime import date, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import partial
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Annotated, Literal, Optional
from uuid import UUID

import anyio.from_thread
from mcp.server.mcpserver import Audio, Context, Image
from mcp.server.mcpserver.exceptions import ResourceError
from mcp_types import *
from pydantic import JsonValue, SecretStr
from tests.differential.vocabulary import *

TOOLS = []
'''
_ONE: Final = """
try:
{source}
    TOOLS.append(({name!r}, tool, {options!r}))
except Exception as error:
    print("not a function:", {name!r}, repr(error))
"""


@dataclass(frozen=True)
class Tool:
    """One example.

    Args:
        source: A function named ``tool``, over the names of ``tests.differential.vocabulary``.
        arguments: What it is called with, as a JSON object; ``NaN`` and ``Infinity`` are numbers.
        structured_output: As for ``MCPServer.tool``.
        why: What a kept example shows.
    """

    source: str
    arguments: str = "{}"
    structured_output: bool | None = None
    why: str = ""

    @cached_property
    def function(self) -> ast.FunctionDef | ast.AsyncFunctionDef:
        """Its syntax."""
        found = ast.parse(self.source).body[-1]
        assert isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef), self.source
        return found

    @property
    def text(self) -> str:
        """Its source, in one form however it is written."""
        return ast.unparse(self.function)

    @cached_property
    def is_fatal(self) -> bool:
        """Whether it raises an exception that is no ``Exception``."""
        return any(isinstance(node, ast.Name) and node.id in FATAL for node in ast.walk(self.function))

    @cached_property
    def logs(self) -> bool:
        """Whether it sends log messages."""
        named = {node.attr for node in ast.walk(self.function) if isinstance(node, ast.Attribute)}
        return not named.isdisjoint(("debug", "info", "warning", "error", "log"))

    @property
    def complexity(self) -> tuple[int, str, str]:
        """Orders tools: how much there is to read, and then anything."""
        length = len(self.source) + len(self.arguments) + (self.structured_output is not None)
        return length, self.source, self.arguments

    def call(self) -> dict[str, Any]:
        """The arguments of its call."""
        return json.loads(self.arguments)

    def __str__(self) -> str:
        """The example as it is kept in ``examples.toml``."""
        lines = ["[[tool]]", f"why = {json.dumps(self.why)}", f"source = '''\n{self.source.strip()}\n'''"]
        if self.arguments != "{}":
            lines.append(f"arguments = {json.dumps(self.arguments)}")
        if self.structured_output is not None:
            lines.append(f"structured_output = {json.dumps(self.structured_output)}")
        return "\n".join(lines)


def kept(path: Path) -> list[Tool]:
    """The examples of a file."""
    return [Tool(**one) for one in tomllib.loads(path.read_text())["tool"]]


def names(tools: Sequence[Tool]) -> list[str]:
    """The names of a module's tools, in their order."""
    return [f"t{number:04}" for number in range(len(tools))]


def write_module(tools: Sequence[Tool], path: Path) -> None:
    """Write the module that defines tools, for each of the servers that load it."""
    path.write_text(_HEAD + "".join(_rendered(tools)))


def _rendered(tools: Sequence[Tool]) -> Iterable[str]:
    for name, tool in zip(names(tools), tools, strict=True):
        options = {"structured_output": tool.structured_output}
        yield _ONE.format(source=indent(tool.text, "    "), name=name, options=options)
