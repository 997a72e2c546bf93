"""``python -m tests.mutants``: break the package in small ways, and see that a test fails each time."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.mutants import generated, patched
from tests.mutants.forked import TestsError
from tests.mutants.verdict import Verdict, report


def main() -> int:
    """Run both kinds of mutants, and show the score and the survivors.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--all", action="store_true", help="all of the engine and the store; takes hours")
    parser.add_argument("--only", choices=["generated", "patched"], help="one kind of mutants alone")
    parser.add_argument("--select", default="", help="only mutants whose names contain this; with --only")
    parser.add_argument("--killers", action="store_true", help="write down which test killed each patch")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    verdicts: list[Verdict] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mcpm-") as folder:
        try:
            if options.only != "patched":
                verdicts += generated.run(Path(folder) / "generated", options.select, everything=options.all)
            if options.only != "generated":
                verdicts += patched.run(Path(folder), options.select)
        except (generated.MutmutError, patched.PatchError, TestsError) as error:
            console.print(str(error), markup=False, soft_wrap=True)
            return 1
    if options.killers:
        patched.remember(verdicts)
    passed = report(verdicts, console)
    console.print(f"{len(verdicts)} mutants in {(time.monotonic() - began) / 60:.1f} minutes", markup=False)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
