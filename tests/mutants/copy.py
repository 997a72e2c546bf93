"""The copy of the project that is broken, and how tests run in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

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
