"""FastMCP 4, in a venv of its own: it is what is measured against, never a dependency."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.processes import ROOT

REQUIREMENT: Final = "fastmcp[tasks]>=4"
VENV: Final = ROOT / "build" / "bench-fastmcp"
PYTHON: Final = VENV / "bin" / "python"
PACKAGES: Final = ("fastmcp", "pydocket", "mcp", "redis", "uvicorn")


class PeerMissingError(Exception):
    """FastMCP cannot be installed here; the message says why."""


def ensure() -> Path:
    """Make the venv, unless it is there and whole.

    Returns:
        Its interpreter.

    Raises:
        PeerMissingError: There is none, and none can be made.
    """
    if not _works():
        uv = [sys.executable, "-m", "uv"]
        for argv in (
            [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(VENV)],
            [*uv, "pip", "install", "--quiet", "--python", str(PYTHON), REQUIREMENT],
        ):
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                raise PeerMissingError((done.stderr or done.stdout).strip()[-500:])
        if not _works():
            raise PeerMissingError(f"{REQUIREMENT} is installed in {VENV.relative_to(ROOT)}, but cannot be imported")
    return PYTHON


def _works() -> bool:
    if not PYTHON.exists():
        return False
    probe = [str(PYTHON), "-c", "import fastmcp_tasks"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """The versions of some packages in the venv."""
    code = f"import importlib.metadata as m; print(*[m.version(p) for p in {packages!r}])"
    found = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(packages, found, strict=True))
