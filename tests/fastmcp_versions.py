"""``python -m tests.fastmcp_versions``: the tests of FastMCP servers on the lowest and on the newest FastMCP 4.

``make test-fastmcp`` calls it. Each version has an environment of its own in ``build``, with the pinned dependencies,
the project, and that FastMCP in the place of the pinned one.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.version import Version

from tests.pythons import OPTIONS, PINS, PLACE, PROJECT, ROOT, SetUpError, say, uv

TESTS: Final = "tests/fastmcp"


def supported() -> Requirement:
    """What the project says of FastMCP."""
    extras = tomllib.loads(PROJECT.read_text())["project"]["optional-dependencies"]
    return Requirement(extras["fastmcp"][0])


def lowest(requirement: Requirement) -> str:
    """The lowest version that fulfils a requirement with a lower bound."""
    (bound,) = [one.version for one in requirement.specifier if one.operator == ">="]
    return str(Version(bound))


def set_up(name: str, fastmcp: str) -> Path:
    """Make an environment, or bring it up to date.

    Args:
        name: Of its folder.
        fastmcp: A requirement.

    Returns:
        Its Python.

    Raises:
        SetUpError: uv could not.
    """
    environment = PLACE / f"fastmcp-{name}"
    python = environment / "bin" / "python"
    say(f"Setting up {environment.relative_to(ROOT)}")
    if not python.exists():
        uv("venv", "--quiet", "--python", sys.executable, str(environment))
    install = ("pip", "install", "--quiet", "--python", str(python))
    uv(*install, "--require-hashes", "-r", str(PINS))
    uv(*install, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    uv(*install, "--upgrade-package", "fastmcp", "--upgrade-package", "fastmcp-slim", fastmcp)
    return python


def main() -> int:
    """The command.

    Returns:
        The exit status.
    """
    requirement = supported()
    failed = False
    for name, wanted in (("lowest", f"fastmcp=={lowest(requirement)}"), ("newest", str(requirement))):
        try:
            python = set_up(name, wanted)
        except SetUpError as error:
            say(f"no environment for {wanted}: {error}")
            failed = True
            continue
        version = subprocess.run(
            [str(python), "-c", "from importlib.metadata import version; print(version('fastmcp'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        say(f"== FastMCP {version}")
        done = subprocess.run([str(python), "-m", "pytest", *OPTIONS, TESTS, *sys.argv[1:]], cwd=ROOT, check=False)
        say(f"FastMCP {version}: {'passed' if done.returncode == 0 else 'FAILED'}")
        failed = failed or done.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
