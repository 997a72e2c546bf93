"""Tests of Ctrl-C do not depend on how the tests were started."""

import signal
import subprocess
import sys

from tests.support.signals import interruptible

TELL = [sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"]


def is_deaf() -> bool:
    return subprocess.run(TELL, capture_output=True, text=True, check=True).stdout == "True\n"


def test_what_is_started_hears_sigint_where_a_shell_has_it_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert is_deaf()
        with interruptible():
            assert not is_deaf()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
