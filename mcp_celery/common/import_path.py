"""Where modules are found that settings name."""

from __future__ import annotations

import sys
from pathlib import Path


def put_on_path(folder: Path) -> None:
    """Have modules of a folder found before all others."""
    if (text := str(folder.resolve())) not in sys.path:
        sys.path.insert(0, text)


def add_current_folder() -> None:
    """Put the current folder on the import path, and leave it there.

    Celery has it there only while it imports modules itself; tools may import later.
    """
    put_on_path(Path.cwd())
