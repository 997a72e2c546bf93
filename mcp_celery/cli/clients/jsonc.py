"""Setting one member of a JSON file that people edit, and leaving every other character as it is.

Files of VS Code may have comments and trailing commas (JSONC). A parser would lose them, so the text itself is changed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

_STRING: Final = r'"(?:[^"\\\n]|\\.)*"'
_COMMENT: Final = re.compile(rf"{_STRING}|//[^\n]*|/\*.*?\*/", re.DOTALL)
_TRAILING_COMMA: Final = re.compile(rf"{_STRING}|,(?=\s*[}}\]])", re.DOTALL)
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_INDENTED: Final = re.compile(r'^([ \t]+)"', re.MULTILINE)
_DECODER: Final = json.JSONDecoder()


class JsonFileError(ValueError):
    """The text cannot be changed.

    Args:
        line: Where, counted from 1.
        problem: Why.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of an object: its name, and where its value begins and ends in the text."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Object:
    """An object: where its braces stand, and its members."""

    opening: int
    closing: int
    members: tuple[_Member, ...]

    def find(self, name: str) -> _Member | None:
        """The member of a name; the last of several, as parsers have it."""
        return next((member for member in reversed(self.members) if member.name == name), None)


class JsonText:
    """The text of a JSON file, or of one with comments and trailing commas.

    Args:
        text: The text; an empty one is an object without members.

    Raises:
        JsonFileError: It is neither, or no object.
    """

    def __init__(self, text: str) -> None:
        self._text = text if text.strip() else "{}\n"
        # All three have the same length, so that a place in one is the same place in the others.
        self._uncommented = _COMMENT.sub(_blanked, self._text)
        self._plain = _TRAILING_COMMA.sub(_blanked, self._uncommented)
        self._newline = "\r\n" if "\r\n" in self._text else "\n"
        found = _INDENTED.search(self._uncommented)
        self._indent = found[1] if found else "  "
        self.document = self._parse()

    def _parse(self) -> dict[str, Any]:
        try:
            document = json.loads(self._plain)
        except json.JSONDecodeError as error:
            raise JsonFileError(error.lineno, f"not JSON: {error.msg} (column {error.colno})") from None
        except RecursionError:
            raise JsonFileError(1, "too deeply nested") from None
        if not isinstance(document, dict):
            raise JsonFileError(1, "not a JSON object")
        return document  # pyright: ignore[reportUnknownVariableType] - names of JSON objects are strings

    def with_entry(self, section: str, name: str, entry: object) -> str:
        """The text with one more, or another, entry in a section; the same text where it has that entry.

        Args:
            section: Name of a member of the document, an object; it is added where there is none.
            name: Name of the entry.
            entry: What JSON can say.

        Raises:
            JsonFileError: The section is no object.
        """
        root = self._object_at(self._skip(0))
        outer = root.find(section)
        if outer is None:
            return self._inserted(root, 0, section, {name: entry})
        if self._plain[outer.start] != "{":
            line = self._text.count("\n", 0, outer.start) + 1
            raise JsonFileError(line, f"{json.dumps(section)} is not an object")
        inner = self._object_at(outer.start)
        found = inner.find(name)
        if found is None:
            return self._inserted(inner, 1, name, entry)
        if self.document[section][name] == entry:
            return self._text
        first, *rest = self._member(2, name, entry)
        value = self._newline.join([first.partition(": ")[2], *rest])
        return self._text[: found.start] + value + self._text[found.end :]

    def _skip(self, at: int) -> int:
        """The next place that is no space."""
        found = _SPACE.match(self._plain, at)
        return at if found is None else found.end()

    def _object_at(self, opening: int) -> _Object:
        members: list[_Member] = []
        at = self._skip(opening + 1)
        while self._plain[at] != "}":
            name, at = _DECODER.raw_decode(self._plain, at)
            start = self._skip(self._skip(at) + 1)  # after the colon
            _, end = _DECODER.raw_decode(self._plain, start)
            members.append(_Member(name, start, end))
            at = self._skip(end)
            if self._plain[at] == ",":
                at = self._skip(at + 1)
        return _Object(opening, at, tuple(members))

    def _member(self, depth: int, name: str, value: object) -> list[str]:
        """The lines of a member; all but the first are indented as members at this depth are."""
        lines = json.dumps({name: value}, indent=self._indent, ensure_ascii=False).splitlines()[1:-1]
        outer = self._indent * (depth - 1)
        return [lines[0].strip(), *(outer + line for line in lines[1:])]

    def _inserted(self, parent: _Object, depth: int, name: str, value: object) -> str:
        """The text with a member at the end of an object; what is written there stays before it."""
        text, closing = self._text, parent.closing
        end = parent.members[-1].end if parent.members else parent.opening + 1
        has_comma = not parent.members or "," in self._uncommented[end:closing]
        kept = text[end:closing].rstrip()
        first, *rest = self._member(depth + 1, name, value)
        inserted = self._newline.join(["", self._indent * (depth + 1) + first, *rest, self._indent * depth])
        return text[:end] + ("" if has_comma else ",") + kept + inserted + text[closing:]


def _blanked(found: re.Match[str]) -> str:
    """Spaces in the place of a comment or a trailing comma; strings stay, and so do line ends."""
    matched = found[0]
    if matched.startswith('"') or (matched == "," and _follows_nothing(found)):
        return matched
    return re.sub(r"[^\r\n]", " ", matched)


def _follows_nothing(comma: re.Match[str]) -> bool:
    """Whether a comma is the first thing in its braces, or the second comma, where no dialect has one."""
    at = comma.start() - 1
    while at >= 0 and comma.string[at].isspace():
        at -= 1
    return at < 0 or comma.string[at] in "{[,"
