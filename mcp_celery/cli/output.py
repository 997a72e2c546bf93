"""Where the lines of child processes go: to the terminal as they come, or kept to be shown where something fails."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

import click

COLOURS: Final = {"store": "yellow", "worker": "green", "server": "cyan", "flower": "magenta"}
NAME_WIDTH: Final = 6
KEPT_LINES: Final = 25
"""Enough to hold a traceback's end and what led to it."""
DEFAULT_COLUMNS: Final = 80
"""Of a terminal that does not say how wide it is."""
_WORDS: Final = re.compile(r"`[^`]*`\S*|\S+")
"""Words, and commands between backquotes."""


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour what is written to a stream: on a terminal that can, and not against https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def at_words(text: str, stream: TextIO, *, indent: int = 0) -> str:
    """Wrap the first line of a text where words end, for a terminal, which would break it in the middle of a word.

    The lines that follow are those of a log, or commands, and are left as they are, as is a text that is not shown on a
    terminal. What stands between backquotes can be copied: it is not broken.

    Args:
        text: The text.
        stream: Where it is written.
        indent: Columns that are taken in front of it.
    """
    if not stream.isatty():
        return text
    first, *others = text.split("\n")
    return "\n".join([wrapped(first, _columns_of(stream), indent=indent), *others])


def error_text(message: str) -> str:
    """The text that Click shows behind ``Error: ``, wrapped as by :func:`at_words`."""
    return at_words(message, sys.stderr, indent=len("Error: "))


def wrapped(line: str, columns: int, *, indent: int = 0) -> str:
    """Wrap a line where words end.

    >>> wrapped("run `pip install x` first", 10).splitlines()
    ['run', '`pip install x`', 'first']

    Args:
        line: The line.
        columns: The most columns of each line; a longer word is a line of its own.
        indent: Columns that are taken in front of it.
    """
    if indent + len(line) <= columns:
        return line
    lines: list[str] = []
    left = 0
    for word in _WORDS.findall(line):
        if len(word) < left:
            lines[-1] += f" {word}"
            left -= len(word) + 1
        else:
            left = columns - len(word) - (0 if lines else indent)
            lines.append(word)
    return "\n".join(lines)


def _columns_of(stream: TextIO) -> int:
    if (given := os.environ.get("COLUMNS", "")).isdecimal() and int(given):
        return int(given)
    with suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_COLUMNS
    return DEFAULT_COLUMNS


def prefixed(name: str, line: str, *, colour: bool) -> str:
    """A child's line as it is shown.

    >>> prefixed("server", "ready", colour=False)
    'server | ready'

    Args:
        name: The child's name.
        line: One line of its output.
        colour: Whether to colour the name.
    """
    label = f"{name:<{NAME_WIDTH}} |"
    return f"{click.style(label, fg=COLOURS.get(name)) if colour else label} {line}"


def typed(program: str) -> str:
    """How to type the name of a program of this environment, which need not be the one that is activated.

    Args:
        program: A console script, such as ``celery``.

    Returns:
        The bare name where the shell finds it, else its path, relative to the current folder where it is below it.
    """
    here = Path(sys.executable).with_name(program)
    if not here.exists() or shutil.which(program) == str(here):
        return program
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)


class Terminal:
    """Shows lines as they come.

    Args:
        stream: Where to write; None: standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._colour = wants_colour(self._stream)

    def __call__(self, name: str, line: str) -> None:
        """Write one line, whole."""
        try:
            self._stream.write(prefixed(name, line, colour=self._colour) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            # Who read the log has gone (`mcp-celery dev … | head`); the processes go on.
            return


class LogTail:
    """Keeps the last lines of each child."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[str]] = {}

    def __call__(self, name: str, line: str) -> None:
        """Keep one line."""
        self._lines.setdefault(name, deque(maxlen=KEPT_LINES)).append(line)

    def text(self) -> str:
        """The kept lines of all children, one child after the other."""
        return "\n".join(prefixed(name, line, colour=False) for name, lines in self._lines.items() for line in lines)
