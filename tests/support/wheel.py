"""The package as it is installed: a wheel, built of the checkout and unpacked."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

from tests.support.programs import ROOT

WITHOUT_CHECKOUT: Final = f"import sys\nsys.path[:] = [path for path in sys.path if path != {str(ROOT)!r}]\n"
"""An editable installation puts the checkout on each interpreter's import path, where no user has it."""


def unpacked_wheel(folder: Path) -> Path:
    """Build the wheel, without a network, and unpack it.

    Args:
        folder: Where.

    Returns:
        The folder to put on ``PYTHONPATH``; the checkout of an editable installation is on no import path then.
    """
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    unpacked = folder / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    (unpacked / "sitecustomize.py").write_text(WITHOUT_CHECKOUT)
    return unpacked


def environment_of(unpacked: Path, **variables: str) -> dict[str, str]:
    """The environment of a user who has installed the wheel, and set nothing.

    Args:
        unpacked: What `unpacked_wheel` returned.
        **variables: Set as well.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MCP_CELERY_")}
    return {**inherited, "PYTHONPATH": str(unpacked), **variables}
