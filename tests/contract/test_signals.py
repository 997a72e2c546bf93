"""Tests of Ctrl-C do not depend on how the tests were started."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial

import pytest

DOES_IT_IGNORE = [sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"]


def test_started_programs_can_be_interrupted() -> None:
    assert subprocess.check_output(DOES_IT_IGNORE, text=True) == "False\n"


@pytest.mark.slow
def test_programs_started_by_tests_in_the_background_of_a_shell_can_be_interrupted() -> None:
    test = f"{__file__}::{test_started_programs_can_be_interrupted.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
