"""Questions of a server, asked at the prompt: forms field by field, each value checked before it is taken."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, cast

import mcp_types as types
from mcp.client.session import ClientRequestContext
from rich.console import Console

from mcp_celery.cli.remote.interrupting import abortable
from mcp_celery.cli.remote.lines import Lines
from mcp_celery.cli.remote.outcome import ClientError, Outcome
from mcp_celery.cli.remote.render import print_line, printable
from mcp_celery.common.schemas import UnusableSchemaError, first_error, require_usable

WAYS_OUT: Final[Mapping[str, types.ElicitResult]] = {
    "/decline": types.ElicitResult(action="decline"),
    "/cancel": types.ElicitResult(action="cancel"),
}
YES: Final = frozenset({"y", "yes", "true", "1"})
NO: Final = frozenset({"n", "no", "false", "0"})
_NOUNS: Final[Mapping[str, str]] = {"integer": "an integer", "number": "a number"}

LONGEST_REASON: Final = 300

Schema = Mapping[str, Any]


class WayOutError(Exception):
    """The user does not answer.

    Args:
        result: The answer for the server instead.
    """

    def __init__(self, result: types.ElicitResult) -> None:
        super().__init__(result.action)
        self.result = result


class OddQuestionError(ClientError):
    """The server asks for something that cannot be asked.

    Args:
        reason: What is wrong with its form.
    """

    def __init__(self, reason: str) -> None:
        shown = reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "…"
        super().__init__(f"the server's form cannot be asked: {shown}", Outcome.FAILED)


class Prompter:
    """Asks the user at the terminal, or takes what is piped in, one question at a time.

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

    async def elicit(
        self,
        context: ClientRequestContext,  # noqa: ARG002
        params: types.ElicitRequestParams,
    ) -> types.ElicitResult | types.ErrorData:
        """Answer ``elicitation/create``; the elicitation callback of a client."""
        try:
            return await self.ask(params)
        except OddQuestionError as error:
            return types.ErrorData(code=types.INVALID_PARAMS, message=str(error))

    async def ask(self, params: types.ElicitRequestParams) -> types.ElicitResult:
        """Ask what a server wants to know.

        Args:
            params: A form, or a page to visit.

        Raises:
            OddQuestionError: The form cannot be asked.
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
                except UnusableSchemaError as error:
                    raise OddQuestionError(str(error)) from None
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
        properties = fields_of(schema)
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
                with abortable():
                    return value_of(line, field)
            except UnusableSchemaError:
                raise
            except ValueError as error:
                print_line(self._console, f"  {error}")
            except KeyboardInterrupt:  # what comes of it, the loop's handler decides
                print_line(self._console, "  (the answer is not checked to the end)")


def fields_of(schema: Schema) -> dict[str, Schema]:
    """The fields of a form, each with the definitions that the form has for all of them.

    Args:
        schema: A ``requestedSchema``, as the server sent it.

    Returns:
        The JSON Schema of each field by its name.

    Raises:
        UnusableSchemaError: It is no form; the text names what the server sent.
    """
    try:
        require_usable(schema)
    except RecursionError:
        raise UnusableSchemaError("it is nested too deeply") from None
    properties: dict[str, Any] = schema.get("properties") or {}
    for name, field in properties.items():
        if not isinstance(field, dict):
            raise UnusableSchemaError(f"its field {name!r} is {field!r} and not an object")
    shared = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return {name: {**shared, **field} for name, field in properties.items()}


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
    """The choices of a field with their titles, from each of MCP's forms of an enumeration."""
    if isinstance(items := field.get("items"), dict):
        field = cast("Schema", items)
    titled: list[Any] = field.get("oneOf") or field.get("anyOf") or []
    if found := [cast("Schema", one) for one in titled if isinstance(one, dict) and "const" in one]:
        return {str(one["const"]): str(one.get("title", one["const"])) for one in found}
    values: list[Any] = field.get("enum") or []
    titles: Any = field.get("enumNames")
    shown = cast("list[Any]", titles) if isinstance(titles, list) else values
    return {str(value): str(title) for value, title in zip(values, shown, strict=False)}


def value_of(text: str, field: Schema) -> Any:
    """Convert a typed line into the value that the question asks for.

    >>> value_of("yes", {"type": "boolean"})
    True

    Args:
        text: One line.
        field: The JSON schema of the value.

    Raises:
        UnusableSchemaError: No value can be checked against the schema.
        ValueError: The text is not a value of that schema; the message is for the user.
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
                number = int(text) if kind == "integer" else float(text)
            except ValueError:
                raise ValueError(f"{text!r} is not {_NOUNS[kind]}") from None
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{text!r} is not a number that JSON has")
            return number
        case "array":
            return [part.strip() for part in text.split(",") if part.strip()]
        case _:
            return text
