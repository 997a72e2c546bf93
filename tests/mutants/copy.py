"""The copy of the project that is broken, and how tests run in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

ROOT: Final = Path(__file__).parents[2]
AT_ONCE: Final = 3 * (os.cpu_count() or 1)
"""How many mutants are tested at a time. The tests of most of them wait more than they compute."""
ENVIRONMENT: Final = {
    # Plugins that these tests do not need take longer to load than most tests, or change the order of the tests.
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    # These tests start no process, so their conditions come soon. Many mutants make them wait in vain.
    "TEST_PATIENCE_SECONDS": "15",
}
"""Of the tests that run against a mutant."""
PYTEST: Final = [
    *("-p", "anyio.pytest_plugin", "-p", "_hypothesis_pytestplugin", "-p", "no:cacheprovider"),
    *("-o", "addopts=--import-mode=importlib"),
    # They race a lifetime of half a second, and would count as kills where the machine is slow.
    *("--deselect", "tests/contract/test_recovery.py::TestExpiry"),
    *("--deselect", "tests/contract/test_exposed.py::test_an_expired_task_is_revoked_and_forgotten_with_all_its_parts"),
]


def copy_to(folder: Path) -> None:
    """Copy what the tests of the engine and the store need."""
    for name in ("mcp_celery", "tests", "workers", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


@contextmanager
def temporary_files(folder: Path) -> Generator[dict[str, str]]:
    """A folder for the temporary files of tests; at the end their stores are killed.

    A test process that is given up leaves its Redis behind, whose socket is there.

    Args:
        folder: Where to make it.

    Yields:
        The environment of the tests, where it is named.
    """
    place = folder / "tmp"
    place.mkdir()
    try:
        yield {"TMPDIR": str(place)}
    finally:
        for process in psutil.process_iter(["cmdline"]):
            if any(str(place) in argument for argument in process.info["cmdline"] or ()):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
