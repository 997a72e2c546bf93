"""``python -m tests.lowest_versions``: unit, contract and smoke tests on the lowest versions that the project allows.

``make test-lowest`` calls it. The environment in ``build/python-lowest`` has the lowest version of each package that
pyproject.toml names for users, the newest of all else, and what tests import. FastMCP, which wants later versions of
some, has `make test-fastmcp`.
"""

from __future__ import annotations

import sys
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.pythons import PLACE, PROJECT, ROOT, SetUpError, run_tests, say, uv

EXTRAS: Final = ("embedded", "flower", "sql", "telemetry")
LOWEST_PYTHON: Final = "3.11"


def named(project: dict[str, Any]) -> frozenset[str]:
    """The packages that a project names for its users, with those of the extras.

    Args:
        project: The table ``project`` of pyproject.toml.
    """
    extras = project["optional-dependencies"]
    stated = [*project["dependencies"], *(text for extra in EXTRAS for text in extras[extra])]
    return frozenset(canonicalize_name(Requirement(text).name) for text in stated)


def only(names: Iterable[str], resolved: str) -> list[str]:
    """The lines of a resolution, as ``uv pip compile`` prints it, that are of some packages."""
    wanted = frozenset(names)
    lines = [line for line in map(str.strip, resolved.splitlines()) if line and not line.startswith("#")]
    return [line for line in lines if canonicalize_name(Requirement(line).name) in wanted]


def set_up() -> tuple[Path, list[str]]:
    """Make the environment anew.

    Returns:
        Its Python, and the lowest versions.

    Raises:
        SetUpError: uv could not.
    """
    PLACE.mkdir(exist_ok=True)
    environment = PLACE / "python-lowest"
    python = environment / "bin" / "python"
    extras = [argument for extra in EXTRAS for argument in ("--extra", extra)]
    compiled = ("pip", "compile", str(PROJECT), *extras, "--python-version", LOWEST_PYTHON)
    plain = ("--quiet", "--no-header", "--no-annotate", "--no-strip-extras")
    say(f"Setting up {environment.relative_to(ROOT)}")
    lowest = only(
        named(tomllib.loads(PROJECT.read_text())["project"]), uv(*compiled, *plain, "--resolution", "lowest-direct")
    )
    bounds, pins = PLACE / "lowest-bounds.txt", PLACE / "lowest-pins.txt"
    bounds.write_text("\n".join(line.replace("[hiredis]", "").replace("[redis]", "") for line in lowest) + "\n")
    pins.write_text(uv(*compiled, *plain, "--group", "test", "--constraint", str(bounds)))
    uv("venv", "--quiet", "--clear", "--python", LOWEST_PYTHON, str(environment))
    install = ("pip", "install", "--quiet", "--python", str(python))
    uv(*install, "--requirement", str(pins))
    uv(*install, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    return python, lowest


def main() -> int:
    """The command.

    Returns:
        The exit status.
    """
    try:
        python, lowest = set_up()
    except SetUpError as error:
        say(f"no environment: {error}")
        return 1
    say(f"== {', '.join(lowest)}")
    began = time.monotonic()
    passed, said = run_tests(python)
    say(f"lowest versions: {'passed' if passed else 'FAILED'} in {time.monotonic() - began:.0f} s ({said})")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
