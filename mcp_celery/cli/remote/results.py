"""Results of tools for people: text, tables of structured content, and files for what a terminal cannot show."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import mcp_types as types
from rich.console import Console
from rich.table import Table

from mcp_celery.cli.remote.render import print_line, printable

LONGEST_NAME: Final = 60
NOT_SAVED: Final = "(a file too many: not saved)"
MOST_FILES: Final = 100
MOST_BYTES: Final = 64 * 1024 * 1024
"""How much of one result is saved: a server must not fill the disk of who calls its tools."""
ENDINGS: Final[Mapping[str, str]] = {
    "application/json": ".json",
    "application/pdf": ".pdf",
    "application/zip": ".zip",
    "audio/aac": ".aac",
    "audio/flac": ".flac",
    "audio/mp4": ".m4a",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg",
    "audio/wav": ".wav",
    "audio/webm": ".webm",
    "audio/x-wav": ".wav",
    "image/avif": ".avif",
    "image/bmp": ".bmp",
    "image/gif": ".gif",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/tiff": ".tiff",
    "image/webp": ".webp",
    "text/csv": ".csv",
    "text/plain": ".txt",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
}
"""What a file's name ends in, by its media type: kinds that a double click shows and does not run. Any other is a
``.bin``, web pages and SVG among them, since both may hold scripts.
"""


def print_result(console: Console, result: types.CallToolResult, *, name: str, folder: Path) -> None:
    """Print what a tool returned.

    Args:
        console: Where to.
        result: The result.
        name: What files are named after.
        folder: Where images, sounds and other binary contents are saved, up to `MOST_FILES` and `MOST_BYTES`; nothing
            there is overwritten, and none of the files is executable.

    Raises:
        OSError: A file cannot be written.
        ValueError: A binary content is not base64.
    """
    files = _Folder(folder, name)
    structured = result.structured_content
    if structured is not None:
        print_structured(console, structured)
    for block in result.content:
        match block:
            case types.TextContent(text=text):
                if structured is None or not _repeats(text, structured):
                    print_line(console, text)
            case types.ImageContent(data=data, mime_type=kind) | types.AudioContent(data=data, mime_type=kind):
                print_line(console, NOT_SAVED if (path := files.save(data, kind)) is None else f"Saved {path}")
            case types.ResourceLink(uri=uri, name=title):
                print_line(console, f"{title}: {uri}")
            case types.EmbeddedResource(resource=types.TextResourceContents(uri=uri, text=text)):
                print_line(console, f"{uri}\n{text}")
            case types.EmbeddedResource(resource=types.BlobResourceContents(uri=uri, blob=data, mime_type=kind)):
                path = files.save(data, kind)
                print_line(console, f"{uri}: {NOT_SAVED if path is None else f'saved {path}'}")
            case _:
                print_line(console, f"({block.type}: nothing that can be shown here)")
    if files.left_out:
        print_line(
            console,
            f"Not saved: {files.left_out} contents. At most {MOST_FILES} files and {MOST_BYTES >> 20} MiB of a result "
            "are saved; --json prints all of it",
        )


class _Folder:
    """Saves contents of one result as files. The server chooses neither their names nor how much is written.

    Args:
        folder: Where to; nothing there is overwritten.
        name: What the files are named after.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:LONGEST_NAME] or "result"
        self._files = 0
        self._bytes = 0
        self._numbers: Counter[str] = Counter()
        self.left_out = 0

    def save(self, data: str, kind: str | None) -> Path | None:
        """Save a content, unless it would be a file too many or too large.

        Args:
            data: The content in base64.
            kind: Its media type, as the server says.

        Returns:
            The file, None where it was not saved.

        Raises:
            OSError: The file cannot be written.
            ValueError: The content is not base64.
        """
        if self._files == MOST_FILES or self._bytes + len(data) * 3 // 4 > MOST_BYTES:
            self.left_out += 1
            return None
        try:
            content = base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise ValueError(f"the server sent a content that is not base64: {error}") from error
        path = self._write(content, ENDINGS.get((kind or "").partition(";")[0].strip().lower(), ".bin"))
        self._files += 1
        self._bytes += len(content)
        return path

    def _write(self, content: bytes, ending: str) -> Path:
        for number in itertools.count(self._numbers[ending] + 1):
            path = self._folder / f"{self._stem}-{number}{ending}"
            try:
                with path.open("xb") as file:  # neither overwrites a file nor follows a link, and makes none executable
                    file.write(content)
            except FileExistsError:
                continue
            self._numbers[ending] = number
            return path
        raise AssertionError  # count() does not end


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
