"""``python -m tests.fastmcp_suite``: FastMCP's own task tests over this package, on 4.1.4 and on the newest 4.x.

``make fastmcp-suite`` calls it. The tests come from FastMCP's source distribution, which is fetched when they are run;
none is kept here, and none is changed. ``shim.py`` puts this package in the place of FastMCP's backend.
``expected_failures.toml`` lists the tests that fail, by reason. Every other failure is an error, and so is a listed
test that passes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from uv import find_uv_bin

ROOT: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
PLACE: Final = ROOT / "build" / "fastmcp-suite"
EXPECTED: Final = HERE / "expected_failures.toml"
TESTS: Final = "tests/tasks"
LOWEST: Final = "4.1.4"
NEWEST: Final = "newest"
TOOLS: Final = (
    "pip",
    "pytest",
    "pytest-asyncio",
    "pytest-env",
    "pytest-timeout",
    "pytest-xdist",
    "inline-snapshot",
    "dirty-equals",
    "fastapi",
    "jsonschema",
    "opentelemetry-sdk",
    "psutil",
    "pydantic-monty",
    "pydocket>=0.26",
)
"""What FastMCP's tests import besides FastMCP itself."""


class SuiteError(Exception):
    """The tests cannot be fetched or run; the text is what the tool said."""


@dataclass(frozen=True)
class Outcomes:
    """What became of the tests, by pytest's ids."""

    passed: frozenset[str]
    failed: frozenset[str]


def run(*argv: str, folder: Path = ROOT, **environment: str) -> str:
    """Run a program.

    Returns:
        What it printed.

    Raises:
        SuiteError: It failed.
    """
    done = subprocess.run(argv, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SuiteError((done.stderr or done.stdout).strip()[-2000:])
    return done.stdout


def set_up(wanted: str) -> tuple[str, Path, Path]:
    """Make a venv with a FastMCP and this project, and unpack that FastMCP's source distribution.

    Args:
        wanted: A version, or ``newest``.

    Returns:
        The version, the venv's interpreter, and the folder of the sources.

    Raises:
        SuiteError: One of them cannot be had.
    """
    uv, venv = find_uv_bin(), PLACE / wanted
    python = venv / "bin" / "python"
    say(f"Setting up {venv.relative_to(ROOT)}")
    requirement = "fastmcp>=4.1,<5" if wanted == NEWEST else f"fastmcp=={wanted}"
    if not python.exists():
        run(uv, "venv", "--quiet", "--python", sys.executable, str(venv))
    run(uv, "pip", "install", "--quiet", "--upgrade", "--python", str(python), requirement, *TOOLS, "-e", str(ROOT))
    version = run(str(python), "-c", "from importlib.metadata import version; print(version('fastmcp'))").strip()
    sources = PLACE / f"fastmcp-{version}"
    if not sources.exists():
        fetch = ("-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(PLACE))
        run(str(python), *fetch, f"fastmcp=={version}")
        with tarfile.open(PLACE / f"fastmcp-{version}.tar.gz") as archive:
            archive.extractall(PLACE, filter="data")
    return version, python, sources


def run_tests(python: Path, sources: Path, tests: Iterable[str], *options: str) -> Outcomes:
    """Run some of the tests."""
    report = PLACE / f"{sources.name}.xml"
    report.unlink(missing_ok=True)
    argv = [str(python), "-m", "pytest", "-p", "tests_shim", "-p", "no:cacheprovider", "-q", "--tb=short"]
    environment = {**os.environ, "PYTHONPATH": str(_importable_shim())}
    subprocess.run(
        [*argv, f"--junitxml={report}", "-o", "junit_family=xunit1", *options, *tests],
        cwd=sources,
        env=environment,
        check=False,
    )
    if not report.exists():
        raise SuiteError(f"pytest wrote no report in {sources}")
    passed: set[str] = set()
    failed: set[str] = set()
    for case in ET.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is None:
            ended_badly = case.find("failure") is not None or case.find("error") is not None
            (failed if ended_badly else passed).add(_id_of(case))
    return Outcomes(frozenset(passed - failed), frozenset(failed))


def _importable_shim() -> Path:
    """A folder that has the shim under a name of its own: FastMCP's tests are a package ``tests`` too."""
    folder = PLACE / "shim"
    folder.mkdir(exist_ok=True)
    (folder / "tests_shim.py").write_text((HERE / "shim.py").read_text())
    return folder


def _id_of(case: ET.Element) -> str:
    """pytest's id of a test: file, class and name."""
    file = case.get("file", "")
    inside = case.get("classname", "").removeprefix(file.removesuffix(".py").replace("/", ".")).strip(".")
    return "::".join(part for part in (file, inside.replace(".", "::"), case.get("name", "")) if part)


def expected_failures(version: str) -> Mapping[str, str]:
    """The tests that are expected to fail on a version, with the reason."""
    found: dict[str, str] = {}
    for group in tomllib.loads(EXPECTED.read_text())["failures"]:
        if re.match(group.get("versions", ""), version):
            found |= dict.fromkeys(group["tests"], group["reason"])
    return found


def check(wanted: str) -> bool:
    """Run the tests of one version, and compare them with what is expected.

    Returns:
        Whether all is as expected.
    """
    version, python, sources = set_up(wanted)
    say(f"== FastMCP {version}")
    # FastMCP's own limit is 5 s, which a busy machine exceeds.
    outcomes = run_tests(python, sources, [TESTS], "-n", "4", "--timeout=30")
    expected = expected_failures(version)
    surprising = outcomes.failed - expected.keys()
    if surprising:
        say(f"{len(surprising)} unexpected failures; they run once more, alone")
        again = run_tests(python, sources, sorted(surprising), "--timeout=60")
        surprising = again.failed
    passed, total = len(outcomes.passed), len(outcomes.passed | outcomes.failed)
    say(f"FastMCP {version}: {passed} of {total} passed")
    for test in sorted(surprising):
        say(f"  failed: {test}")
    mistaken = sorted(outcomes.passed & expected.keys())
    for test in mistaken:
        say(f"  passed, though expected to fail ({expected[test]}): {test}")
    return not surprising and not mistaken


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)  # noqa: T201 - a command


def main() -> int:
    """The command.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.fastmcp_suite")
    parser.add_argument("versions", nargs="*", default=[LOWEST, NEWEST], help="versions of FastMCP, or `newest`")
    PLACE.mkdir(parents=True, exist_ok=True)
    try:
        results = [check(wanted) for wanted in parser.parse_args().versions]
    except SuiteError as error:
        say(f"the tests could not be run: {error}")
        return 2
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
