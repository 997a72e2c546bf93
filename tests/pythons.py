"""``python -m tests.pythons``: unit tests, contract tests and a smoke test of each pool on every Python that is here.

``make test-pythons`` calls it. With ``--others`` it leaves out the minor version that runs it, for where all tests have
run on that one. It takes the newest patch of each minor version of CPython that the project supports,
as uv finds them: on PATH, under pyenv, and among those that uv itself has installed. Each has an environment of its own
in ``build/python-3.N``, with the pinned dependencies and the project; one is made again when constraints.txt,
pyproject.toml or the interpreter changes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.specifiers import SpecifierSet
from packaging.version import Version
from uv import find_uv_bin

ROOT: Final = Path(__file__).parents[1]
PLACE: Final = ROOT / "build"
PINS: Final = ROOT / "constraints.txt"
PROJECT: Final = ROOT / "pyproject.toml"

TESTS: Final = ("tests/unit", "tests/contract", "tests/smoke")
OPTIONS: Final = (
    "-p",
    "no:cacheprovider",  # one cache for several interpreters says nothing
    *(("-n", "4", "--dist", "loadgroup") if importlib.util.find_spec("xdist") else ()),
)
"""Of pytest. Every environment has the packages that this one has."""


@dataclass(frozen=True)
class Interpreter:
    """A CPython."""

    version: Version
    path: Path

    @property
    def minor(self) -> str:
        return f"{self.version.major}.{self.version.minor}"


class SetUpError(Exception):
    """An environment could not be made; the text is what the tool said."""


def pyenv_folders(environment: dict[str, str]) -> list[Path]:
    """Where pyenv's interpreters are: it puts none but the selected ones on PATH."""
    root = Path(environment.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return sorted(root.glob("versions/*/bin"))


def newest(listed: Iterable[dict[str, Any]], supported: SpecifierSet) -> list[Interpreter]:
    """The newest release of each minor version, the oldest version first.

    Args:
        listed: What ``uv python list`` gives.
        supported: The versions that the project runs on.
    """
    found: dict[str, Interpreter] = {}
    for one in listed:
        version = Version(one["version"])
        unfit = one["implementation"] != "cpython" or one["variant"] != "default" or version.is_prerelease
        if unfit or version not in supported:
            continue
        interpreter = Interpreter(version, Path(one["path"]))
        known = found.setdefault(interpreter.minor, interpreter)
        if known.version < version:
            found[interpreter.minor] = interpreter
    return sorted(found.values(), key=lambda interpreter: interpreter.version)


def find() -> list[Interpreter]:
    """The interpreters of this machine, the one that runs this included.

    Raises:
        SetUpError: uv could not look.
    """
    folders = [Path(sys.base_prefix) / "bin", *pyenv_folders(dict(os.environ))]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", "")])
    listed = uv("python", "list", "--only-installed", "--output-format", "json", PATH=path)
    supported = SpecifierSet(tomllib.loads(PROJECT.read_text())["project"]["requires-python"])
    return newest(json.loads(listed), supported)


def uv(*arguments: str, **environment: str) -> str:
    """Run the pinned uv.

    Returns:
        What it printed.
    """
    done = subprocess.run(
        [find_uv_bin(), *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SetUpError(done.stderr.strip())
    return done.stdout


def set_up(interpreter: Interpreter) -> Path:
    """Make the interpreter's environment, unless there is one of the same ingredients.

    Returns:
        Its Python.

    Raises:
        SetUpError: uv could not.
    """
    environment = PLACE / f"python-{interpreter.minor}"
    python = environment / "bin" / "python"
    ready = environment / "made-of"
    ingredients = hashlib.sha256(PINS.read_bytes() + PROJECT.read_bytes())
    ingredients.update(f"{interpreter.version} {interpreter.path}".encode())
    if not ready.exists() or ready.read_text() != ingredients.hexdigest():
        say(f"Setting up {environment.relative_to(ROOT)}")
        uv("venv", "--quiet", "--clear", "--python", str(interpreter.path), str(environment))
        install = ("pip", "install", "--quiet", "--python", str(python))
        uv(*install, "--require-hashes", "-r", str(PINS))
        uv(*install, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        ready.write_text(ingredients.hexdigest())
    return python


def run_tests(python: Path) -> tuple[bool, str]:
    """Run the tests, and show what they say.

    Returns:
        Whether all passed, and pytest's last line.
    """
    running = subprocess.Popen(
        [str(python), "-m", "pytest", *OPTIONS, *TESTS], cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert running.stdout is not None
    last = ""
    for line in running.stdout:
        print(line, end="", flush=True)  # noqa: T201 - a command
        last = line.strip() or last
    return running.wait() == 0, re.sub(r"^=+ | =+$", "", last)


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)  # noqa: T201 - a command


def main(arguments: Sequence[str] = ()) -> int:
    """The command.

    Args:
        arguments: Its arguments.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.pythons")
    parser.add_argument("--others", action="store_true", help="leave out the minor version that runs this")
    is_others = parser.parse_args(arguments).others
    found = find()
    if not found:
        say("no CPython that the project supports was found: on PATH, under pyenv, or among uv's")
        return 1
    for interpreter in found:
        say(f"Found CPython {interpreter.version}: {interpreter.path}")
    if is_others:
        found = [one for one in found if (one.version.major, one.version.minor) != sys.version_info[:2]]
    report: list[str] = []
    failed = False
    for interpreter in found:
        try:
            python = set_up(interpreter)
        except SetUpError as error:
            passed, said, seconds = False, f"no environment: {error}", 0.0
        else:
            say(f"\n== CPython {interpreter.version}")
            began = time.monotonic()
            passed, said = run_tests(python)
            seconds = time.monotonic() - began
        failed = failed or not passed
        report.append(f"CPython {interpreter.version}: {'passed' if passed else 'FAILED'} in {seconds:.0f} s ({said})")
    say("\n" + "\n".join(report))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
