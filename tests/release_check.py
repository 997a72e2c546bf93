"""``python -m tests.release_check``: what would be uploaded works where nothing else is.

``make release-check`` calls it. It builds the source distribution, builds the wheel from that alone, has twine check
both, and installs the wheel on each Python found (see `tests.pythons`) in an empty environment, with the newest
dependencies. There the README's server and client, and the demo, run in empty folders. Everything is in
``build/release``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tests.pythons import PLACE, PROJECT, ROOT, Interpreter, SetUpError, find, say, uv
from tests.support.deployment import answering_url, process

RELEASE: Final = PLACE / "release"
NAME: Final = "mcp-celery-backend"
GIVE_UP_SECONDS: Final = 300
README: Final = ROOT / "README.md"
DOCUMENTED: Final = "127.0.0.1:8000"
"""Where the README's server answers."""


class ReleaseError(Exception):
    """Something of the release does not work; the text says what."""


@dataclass(frozen=True)
class Distributions:
    """What would be uploaded."""

    source: Path
    wheel: Path
    version: str


def run(*command: str | Path, folder: Path, env: dict[str, str] | None = None) -> str:
    """Run a command.

    Args:
        *command: The command line.
        folder: Where.
        env: Its environment; None: that of this process.

    Returns:
        What it printed.

    Raises:
        ReleaseError: It failed.
    """
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=GIVE_UP_SECONDS,
        check=False,
    )
    if done.returncode:
        raise ReleaseError(f"`{' '.join(map(str, command))}` failed:\n{done.stdout[-4000:]}")
    return done.stdout


def build(version: str) -> Distributions:
    """Build the source distribution, and the wheel from what is in it.

    Raises:
        ReleaseError: One cannot be built, or has another version.
    """
    shutil.rmtree(RELEASE, ignore_errors=True)
    dist, unpacked = RELEASE / "dist", RELEASE / "source"
    dist.mkdir(parents=True)
    hatchling = (sys.executable, "-m", "hatchling", "build", "--directory", dist, "--target")
    run(*hatchling, "sdist", folder=ROOT)
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(unpacked, filter="data")
    (folder,) = unpacked.iterdir()
    run(*hatchling, "wheel", folder=folder)
    (wheel,) = dist.glob("*.whl")
    expected = f"{NAME.replace('-', '_')}-{version}"
    if not (source.name.startswith(f"{expected}.") and wheel.name.startswith(f"{expected}-")):
        raise ReleaseError(f"{source.name} and {wheel.name} are not of version {version}")
    return Distributions(source, wheel, version)


def check_texts(version: str) -> None:
    """See that the changelog begins with the version.

    Raises:
        ReleaseError: It has not.
    """
    (first, *_) = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if first != version:
        raise ReleaseError(f"CHANGELOG.md begins with {first!r}, and pyproject.toml has version {version}")


def readme_block(containing: str) -> str:
    """The only Python block of the README that contains a text."""
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return found


def install(interpreter: Interpreter, built: Distributions) -> Path:
    """Install the wheel in an empty environment, as a user does.

    Returns:
        The folder of its commands.

    Raises:
        SetUpError: uv could not.
    """
    environment = RELEASE / f"python-{interpreter.minor}"
    uv("venv", "--quiet", "--clear", "--python", str(interpreter.path), str(environment))
    python = str(environment / "bin" / "python")
    uv("pip", "install", "--quiet", "--python", python, f"{NAME}[embedded] @ {built.wheel.as_uri()}")
    uv("pip", "check", "--quiet", "--python", python)
    return environment / "bin"


def try_out(commands: Path, version: str) -> None:
    """Run the README's server and client, and the demo, in empty folders.

    Args:
        commands: The folder of the installed commands.
        version: The version that they are to have.

    Raises:
        ReleaseError: One of them fails.
    """
    folder = commands.parent / "try-out"
    folder.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MCP_CELERY_", "PYTHON"))}
    env = inherited | {"PATH": f"{commands}{os.pathsep}{inherited['PATH']}", "PYTHONUNBUFFERED": "1"}
    env |= {"VIRTUAL_ENV": str(commands.parent), "XDG_STATE_HOME": str(folder / "state")}

    def says(command: list[str | Path], expected: str) -> None:
        printed = run(*command, folder=folder, env=env)
        if expected not in printed:
            raise ReleaseError(f"`{' '.join(map(str, command))}` does not print {expected!r}:\n{printed[-4000:]}")

    says([commands / "mcp-celery", "--version"], version)
    (folder / "reports.py").write_text(readme_block("def build_report"))
    dev = [str(commands / "mcp-celery"), "dev", "reports.py", "--port", "0"]
    with process(dev, env, folder / "dev.log", quiet=True, folder=folder) as running:
        address = urlsplit(answering_url(folder / "dev.log", running)).netloc
        (folder / "client.py").write_text(readme_block("asyncio.run(main())").replace(DOCUMENTED, address))
        says([commands / "python", "client.py"], "Report of 2026: 12 months")
    says([commands / "mcp-celery", "demo"], "completed")


def check_on(interpreter: Interpreter, built: Distributions) -> str | None:
    """Install the wheel on an interpreter, and try it out.

    Returns:
        What is wrong; None for nothing.
    """
    try:
        try_out(install(interpreter, built), built.version)
    except (ReleaseError, SetUpError, AssertionError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None


def main() -> int:
    """The command.

    Returns:
        The exit status.
    """
    version: str = tomllib.loads(PROJECT.read_text())["project"]["version"]
    try:
        check_texts(version)
        built = build(version)
        run(sys.executable, "-m", "twine", "check", "--strict", built.source, built.wheel, folder=ROOT)
        interpreters = find()
    except (ReleaseError, SetUpError) as error:
        say(str(error))
        return 1
    say(f"Built {built.source.name} and {built.wheel.name}; twine finds nothing wrong")
    problems = {one: check_on(one, built) for one in interpreters}
    for interpreter, problem in problems.items():
        said = "the README's server and client and the demo run" if problem is None else f"FAILED: {problem}"
        say(f"CPython {interpreter.version}: {said}")
    return int(not problems or any(problem is not None for problem in problems.values()))


if __name__ == "__main__":
    sys.exit(main())
