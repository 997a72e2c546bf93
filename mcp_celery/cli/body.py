"""The body of a command, imported when the command runs: help, version and usage errors must not wait for imports."""

from __future__ import annotations

import io
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Body:
    """The callback of a command: a function that is imported by its name when the command runs.

    Args:
        name: ``module:function``. The function takes the command's parameters as keyword arguments.
    """

    name: str

    def load(self) -> Callable[..., object]:
        """Import the function."""
        return pkgutil.resolve_name(self.name)

    def __call__(self, **parameters: Any) -> None:
        """Run the command. What it prints may have characters that the encoding of standard output lacks."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it
        self.load()(**parameters)
