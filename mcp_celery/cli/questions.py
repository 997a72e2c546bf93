"""Questions of a server, asked at the prompt: forms field by field, each value checked before it is taken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import mcp_types as types
from mcp.client.session import ClientRequestContext
from rich.console import Console

from mcp_celery.cli.lines import Lines
from mcp_celery.cli.render import print_line, printable
from mcp_celery.schemas import first_error

WAYS_OUT: Final[Mapping[str, types.ElicitResult]] = {
    "/decline": types.ElicitResult(action="decline"),
    "/cancel": types.ElicitResult(action="cancel"),
}
YES: Final = frozenset({"y", "yes", "true", "1"})
NO: Final = frozenset({"n", "no", "false", "0"})

Schema = Mapping[str, Any]


class WayOutError(Exception):
    """The user does not answer.

    Args:
        result: What the server is told instead.
    """

    def __init__(self, result: types.ElicitResult) -> None:
        super().__init__(result.action)
        self.result = result


class Prompter:
    """Asks whoever is at the terminal, or takes what is piped in, one question at a time.

    Args:
        console: Where to ask.
        lines: Where the answers come from; their end is an answer too: ``cancel``.
        paused: Holds back what else is shown, for as long as the context lasts.
    """

    def __init__(self, console: Console, lines: Lines, paused: Callable[[], AbstractContextManager[object]]) -> None:
        self._console = console
        self._lines = lines
        self._paused = paused
        self._turn = asyncio.Lock()
        self._open_prompt = ""

    async def elicit(self, context: ClientRequestContext, params: types.ElicitRequestParams) -> types.ElicitResult:  # noqa: ARG002
        """Answer ``elicitation/create``; the elicitation callback of a client."""
        return await self.ask(params)

    async def ask(self, params: types.ElicitRequestParams) -> types.ElicitResult:
        """Ask what a server wants to know.

        Args:
            params: A form, or a page to visit.
        """
        async with self._turn:
            with self._paused():
                print_line(self._console, f"\n? {params.message}")
                try:
                    if isinstance(params, types.ElicitRequestURLParams):
                        return await self._visit(params.url)
                    return await self._fill_in(params.requested_schema)
                except WayOutError as out:
                    print_line(self._console, f"  ({out})")
                    return out.result
                except asyncio.CancelledError:
                    print_line(self._console, "\n  (no longer asked)")
                    raise

    async def choose(self, text: str) -> str | None:
        """Ask something of our own; the answer in small letters, None at the end of the input."""
        line = await self._line(text)
        return None if line is None else line.strip().lower()

    def repeat(self) -> None:
        """Show again what waits for an answer, after something else was asked in between."""
        self._show(self._open_prompt)

    def _show(self, prompt: str) -> None:
        self._console.print(printable(prompt), end="", soft_wrap=True, markup=False, highlight=False)

    async def _line(self, prompt: str) -> str | None:
        self._show(prompt)
        return await self._lines.read()

    async def _visit(self, url: str) -> types.ElicitResult:
        print_line(self._console, f"  {url}")
        answer = await self._ask("  Have you opened it, and done what it says? [y/n] ", {"type": "boolean"}, None)
        return types.ElicitResult(action="accept" if answer else "decline")

    async def _fill_in(self, schema: Schema) -> types.ElicitResult:
        properties: Mapping[str, Schema] = schema.get("properties") or {}
        required: list[str] = schema.get("required") or []
        print_line(self._console, "  (/decline or /cancel instead of an answer)")
        if not properties:
            agreed = await self._ask("  [y/n] ", {"type": "boolean"}, None)
            return types.ElicitResult(action="accept" if agreed else "decline", content={} if agreed else None)
        content: dict[str, Any] = {}
        for name, field in properties.items():
            if description := field.get("description"):
                print_line(self._console, f"  {description}")
            value = await self._ask(_prompt_of(name, field), field, field.get("default"), optional=name not in required)
            if value is not None:
                content[name] = value
        return types.ElicitResult(action="accept", content=content)

    async def _ask(self, text: str, field: Schema, default: Any, *, optional: bool = False) -> Any:
        while True:
            self._open_prompt = text
            try:
                line = await self._line(text)
            finally:
                self._open_prompt = ""
            if line is None:
                raise WayOutError(WAYS_OUT["/cancel"])
            if line.strip() in WAYS_OUT:
                raise WayOutError(WAYS_OUT[line.strip()])
            if not line and (default is not None or optional):
                return default
            try:
                return value_of(line, field)
            except ValueError as error:
                print_line(self._console, f"  {error}")


def _prompt_of(name: str, field: Schema) -> str:
    choices = choices_of(field)
    hints = [f"{value} ({title})" if title != value else value for value, title in choices.items()]
    if not hints and field.get("type") == "boolean":
        hints = ["y", "n"]
    shown = f" [{', '.join(hints)}]" if hints else ""
    default = "" if field.get("default") is None else f" ({json.dumps(field['default'])})"
    several = ", separated by commas" if field.get("type") == "array" else ""
    return f"  {field.get('title') or name}{shown}{several}{default}: "


def choices_of(field: Schema) -> dict[str, str]:
    """What may be chosen, with the title of each: every way in which MCP writes an enumeration."""
    field = field.get("items") or field
    if titled := field.get("oneOf") or field.get("anyOf"):
        return {str(one["const"]): str(one.get("title", one["const"])) for one in titled if "const" in one}
    values: list[Any] = field.get("enum") or []
    titles: list[Any] = field.get("enumNames") or values
    return {str(value): str(title) for value, title in zip(values, titles, strict=False)}


def value_of(text: str, field: Schema) -> Any:
    """What a user has typed, as the value that was asked for.

    >>> value_of("yes", {"type": "boolean"})
    True

    Args:
        text: One line.
        field: The JSON schema of the value.

    Raises:
        ValueError: It is none; with a text for the user.
    """
    value = _converted(text.strip(), field)
    if (error := first_error(field, value)) is not None:
        raise ValueError(error.message)
    return value


def _converted(text: str, field: Schema) -> Any:
    match field.get("type"):
        case "boolean":
            if text.lower() not in YES | NO:
                raise ValueError("please answer y or n")
            return text.lower() in YES
        case "integer" | "number" as kind:
            try:
                return int(text) if kind == "integer" else float(text)
            except ValueError:
                raise ValueError(f"{text!r} is no {kind}") from None
        case "array":
            return [part.strip() for part in text.split(",") if part.strip()]
        case _:
            return text
