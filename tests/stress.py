"""Runs the tests beside processes that keep every processor busy, several times: `python -m tests.stress --times 3`.

Other options are pytest's. Each run has another random order: pytest prints its seed, which `--randomly-seed` repeats.
The first run that fails is the last.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final

BUSY: Final = "while True: pass"
TIMES: Final = 3
RUN: Final = (sys.executable, "-m", "pytest")


@contextmanager
def busy_processors() -> Generator[None]:
    """Keep as many processes busy as there are processors, for as long as the context lasts."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def main(argv: Sequence[str]) -> int:
    """Run the tests several times.

    Args:
        argv: How often, and what pytest is called with.

    Returns:
        The exit status of the last run.
    """
    parser = argparse.ArgumentParser(prog="tests.stress", description=__doc__, allow_abbrev=False)
    parser.add_argument("--times", type=int, default=TIMES)
    given, options = parser.parse_known_args(argv)
    with busy_processors():
        for number in range(1, given.times + 1):
            print(f"== run {number} of {given.times}, beside busy processors", flush=True)  # noqa: T201
            if status := subprocess.run([*RUN, *options], check=False).returncode:
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
