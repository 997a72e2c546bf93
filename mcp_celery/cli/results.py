"""Results of tools for people: text, tables of structured content, and files for what a terminal cannot show."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import mimetypes
import re
from pathlib import Path
from typing import Any, Final, cast

import mcp_types as types
from rich.console import Console
from rich.table import Table

from mcp_celery.cli.render import print_line, printable

LONGEST_NAME: Final = 60


def print_result(console: Console, result: types.CallToolResult, *, name: str, folder: Path) -> None:
    """Print what a tool returned.

    Args:
        console: Where to.
        result: The result.
        name: What files are named after.
        folder: Where images, sounds and other binary contents are saved; nothing there is overwritten.

    Raises:
        OSError: A file cannot be written.
        ValueError: A binary content is none.
    """
    structured = result.structured_content
    if structured is not None:
        print_structured(console, structured)
    for block in result.content:
        match block:
            case types.TextContent(text=text):
                if structured is None or not _repeats(text, structured):
                    print_line(console, text)
            case types.ImageContent(data=data, mime_type=kind) | types.AudioContent(data=data, mime_type=kind):
                print_line(console, f"Saved {_save(data, kind, name, folder)}")
            case types.ResourceLink(uri=uri, name=title):
                print_line(console, f"{title}: {uri}")
            case types.EmbeddedResource(resource=types.TextResourceContents(uri=uri, text=text)):
                print_line(console, f"{uri}\n{text}")
            case types.EmbeddedResource(resource=types.BlobResourceContents(uri=uri, blob=data, mime_type=kind)):
                print_line(console, f"{uri}: saved {_save(data, kind, name, folder)}")
            case _:
                print_line(console, f"({block.type}: nothing that can be shown here)")


def text_of(result: types.CallToolResult) -> str:
    """The text of a result, on one line."""
    texts = (block.text for block in result.content if isinstance(block, types.TextContent))
    return " ".join(" ".join(texts).split())


def _unwrapped(structured: Any) -> Any:
    """Servers wrap what is no object: ``{"result": 3}``."""
    match structured:
        case {"result": result, **others} if not others:
            return result
        case _:
            return structured


def _repeats(text: str, structured: Any) -> bool:
    """Whether a text says what the structured content says already."""
    plain = _unwrapped(structured)
    if text == plain:
        return True
    try:
        said = json.loads(text)
    except ValueError:
        return False
    # Of a list, each entry may be a text of its own.
    return said in (structured, plain) or (isinstance(plain, list) and said in cast("list[Any]", plain))


def print_structured(console: Console, structured: Any) -> None:
    """Print a JSON value: an object as a table of its fields, a list of objects as one of its entries."""
    plain = _unwrapped(structured)
    if isinstance(plain, dict):
        fields = cast("dict[str, Any]", plain)
        _print_table(console, None, list(fields.items()))
    elif isinstance(plain, list):
        entries = cast("list[Any]", plain)
        rows = [cast("dict[str, Any]", entry) for entry in entries if isinstance(entry, dict)]
        if rows and len(rows) == len(entries):
            columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
            _print_table(console, columns, [tuple(row.get(column) for column in columns) for row in rows])
        else:
            for entry in entries:
                print_line(console, _cell(entry))
    else:
        print_line(console, _cell(plain))


def _print_table(console: Console, columns: list[str] | None, rows: list[tuple[Any, ...]]) -> None:
    table = Table(*(printable(column) for column in columns or ("", "")), show_header=columns is not None)
    for row in rows:
        table.add_row(*(printable(_cell(value)) for value in row))
    console.print(table, markup=False, highlight=False)


def _cell(value: Any) -> str:
    match value:
        case str():
            return value
        case None:
            return ""
        case _:
            return json.dumps(value, ensure_ascii=False)


def _save(data: str, kind: str | None, name: str, folder: Path) -> Path:
    try:
        content = base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the server sent a content that is not base64: {error}") from error
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:LONGEST_NAME] or "result"
    ending = mimetypes.guess_extension(kind or "") or ".bin"
    for number in itertools.count(1):
        path = folder / f"{stem}-{number}{ending}"
        try:
            with path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            continue
        return path
    raise AssertionError  # count() does not end
