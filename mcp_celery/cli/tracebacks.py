"""Tracebacks of the user's own code, as commands show them."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.traceback import Traceback

_NOT_SHOWN: Final = ("<frozen importlib", str(Path(__file__).parents[1]), importlib.__file__)
"""What the files of frames begin with that say nothing of the user's code."""


def print_traceback(error: Exception) -> None:
    """Print where the user's code raised an exception: without the frames of the import system and of this package."""
    kept = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(_NOT_SHOWN)
    ]
    found: TracebackType | None = None
    for frame, line in reversed(kept):
        found = TracebackType(found, frame, frame.f_lasti, line)
    Console(stderr=True).print(Traceback.from_exception(type(error), error, found, word_wrap=True))
