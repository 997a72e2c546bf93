"""The package's source, parsed once in a process: tests that read it run in one, by their mark ``xdist_group``."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[2] / "mcp_celery"


@functools.cache
def modules_of_the_package() -> dict[str, ast.Module]:
    """The syntax tree of each module, by its path in the package."""
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
