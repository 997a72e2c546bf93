"""A terminal's screen as an SVG picture."""

from __future__ import annotations

import io
import re
from typing import Final

import pyte
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.text import Text

FORMAT: Final = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "font-family: Fira Code, monospace", "font-family: monospace"
)
"""Rich's, without fonts that whoever looks at the picture would fetch from a third party."""


def svg_of(screen: pyte.Screen, *, name: str, title: str) -> str:
    """Draw all rows and columns of a screen, empty or not, so that each picture of a size has the same size.

    Args:
        screen: The screen.
        name: What tells the picture's identifiers from those of others on one page.
        title: Stands above the screen.
    """
    console = Console(
        file=io.StringIO(),
        record=True,
        width=screen.columns,
        force_terminal=True,
        color_system="truecolor",
        _environ={},
    )
    for row in range(screen.lines):
        text = Text(no_wrap=True)
        for column in range(screen.columns):
            cell = screen.buffer[row][column]
            text.append(cell.data, _style_of(cell))
        console.print(text)
    return console.export_svg(title=title, unique_id=name, code_format=FORMAT)


def _style_of(cell: pyte.screens.Char) -> Style:
    return Style(
        color=_colour(cell.fg),
        bgcolor=_colour(cell.bg),
        bold=cell.bold or None,
        italic=cell.italics or None,
        underline=cell.underscore or None,
        reverse=cell.reverse or None,
    )


def _colour(name: str) -> str | None:
    """A colour of pyte, as Rich calls it.

    >>> _colour("brown"), _colour("brightred"), _colour("3a3a3a"), _colour("default")
    ('yellow', 'bright_red', '#3a3a3a', None)
    """
    if name == "default":
        return None
    if re.fullmatch(r"[0-9a-f]{6}", name):
        return f"#{name}"
    plain = name.removeprefix("bright")
    plain = "yellow" if plain == "brown" else plain
    return plain if name in (plain, "brown") else f"bright_{plain}"
