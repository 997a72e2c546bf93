"""Where the lines of child processes go: to the terminal as they come, or kept to be shown where something fails."""

from __future__ import annotations

import os
import shutil
import sys
from collections import deque
from pathlib import Path
from typing import Final, TextIO

import click

COLOURS: Final = {"store": "yellow", "worker": "green", "server": "cyan"}
NAME_WIDTH: Final = 6
KEPT_LINES: Final = 25
"""Enough to hold a traceback's end and what led to it."""


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour what is written to a stream: only on a terminal, and not against https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


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
