"""Lua mutants: the tests are collected once, and each mutant is a fork in which a script has another text."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from mcp_celery.store.scripts import SCRIPTS, file_text, written
from tests.mutants.copy import AT_ONCE, ENVIRONMENT, PYTEST, ROOT

_HANG_SECONDS: Final = 900
"""After which a mutant is taken to hang, on a busy machine too."""


class TestsError(Exception):
    """The tests could not be run, or fail without any mutant."""


@dataclass(frozen=True)
class Script:
    """A Lua script with a change.

    Attributes:
        name: Of the mutant.
        original: The script as it is.
        mutated: The script with the change; as it is, the tests have to pass.
        nearest: The test that is run before the others, because it failed before, or the file of those that probably
            fail.
    """

    name: str
    original: str
    mutated: str
    nearest: str


def first_failures(scripts: Sequence[Script], tests: Sequence[str], folder: Path) -> dict[str, str | None]:
    """Run the tests with each script until one fails.

    Args:
        scripts: The mutants.
        tests: Files of tests.
        folder: For the logs.

    Returns:
        By the scripts' names: which test failed, None when all passed.

    Raises:
        TestsError: The tests could not be run.
    """
    forks = _Forks(scripts, folder)
    os.environ.update(ENVIRONMENT)
    # What is in memory instead of Redis runs no script; what both share is tested with Redis as well.
    argv = ["-x", "-q", "-s", "--no-header", *PYTEST, "--rootdir", str(ROOT), "-k", "not memory"]
    pytest.main([*argv, *(str(ROOT / test) for test in tests)], plugins=[forks])
    if missing := [script.name for script in scripts if script.name not in forks.failures]:
        raise TestsError(f"the tests could not be collected, so {len(missing)} mutants were not run")
    return forks.failures


class _Forks:
    """A plugin of pytest: the process that collects forks for each script, and runs no test itself."""

    def __init__(self, scripts: Sequence[Script], folder: Path) -> None:
        self.failures: dict[str, str | None] = {}
        self._scripts = scripts
        self._folder = folder
        self._running: dict[int, Script] = {}
        self._mine: Script | None = None
        self._failed = ""

    def _log(self, script: Script) -> Path:
        return self._folder / f"{script.name}.log"

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if not session.items or session.testsfailed:
            return
        for script in self._scripts:
            if len(self._running) == AT_ONCE:
                self._wait()
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                self._become(script, session.items)
                return
            self._running[child] = script
        while self._running:
            self._wait()
        session.items.clear()

    def _become(self, script: Script, items: list[pytest.Item]) -> None:
        """Turn this process, which was just forked, into one that tests a script."""
        self._mine = script
        signal.alarm(_HANG_SECONDS)
        log = os.open(self._log(script), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        SCRIPTS.update(written(lambda name: file_text(name).replace(script.original, script.mutated)))
        file, *_ = script.nearest.partition("::")
        items.sort(key=lambda item: (item.nodeid != script.nearest, not item.nodeid.startswith(file)))

    def _wait(self) -> None:
        child, status = os.wait()
        script = self._running.pop(child)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
            self.failures[script.name] = "the tests hang"
            return
        code = os.waitstatus_to_exitcode(status)
        *_, last = self._log(script).read_text(errors="replace").splitlines() or [""]
        if code not in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}:
            raise TestsError(f"the tests of {script.name} ended with {code}: {last}")
        self.failures[script.name] = None if code == pytest.ExitCode.OK else last

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed = self._failed or report.nodeid

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """End a fork when its fixtures are torn down; what comes next is the collecting process's."""
        if self._mine is not None:
            print(f"\n{self._failed}", flush=True)  # noqa: T201 - the log's last line tells the collecting process
            os._exit(pytest.ExitCode.TESTS_FAILED if self._failed else exitstatus)
