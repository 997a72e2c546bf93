"""Ends a supervisor's children when the supervisor itself was killed and could not.

A process of its own, started by the supervisor as ``python -I -S watchdog.py [COMMAND...]``: it imports the standard
library only, so it costs little, and it works whatever the children do with their signals. Its standard input is a
pipe that only the supervisor can write to, so the kernel reports the supervisor's end to it, however that came
(measured: a parent that ends its children in ``atexit`` alone orphans them). The lines on the pipe:

===============  =============================================================================================
``+PID SIGNAL``  a child was started; it leads the process group ``PID``, and ``SIGNAL`` is its urgent signal
``-PID``         the child and its whole group are gone
``.``            the supervisor has ended everything by itself: leave at once
===============  =============================================================================================

An end of the pipe without the ``.`` means that the supervisor died. Then every group goes through `STEPS`, and
``COMMAND``, if there is one, is run as the last thing (it lets go of what the supervisor held besides processes).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import IO, Final, Literal, NamedTuple


class Step(NamedTuple):
    """One step in ending children: what they are sent, and how long they then have."""

    name: Literal["ask", "urge", "kill"]
    """``ask``: SIGTERM to the child. ``urge``: its urgent signal to the child. ``kill``: SIGKILL to its group."""
    seconds: float


STEPS: Final = (Step("ask", 5.0), Step("urge", 3.0), Step("kill", 1.5))
"""How children are ended: within 10 seconds, whatever they do. Celery's warm shutdown waits for the jobs that run,
without a limit, so the second step says it with more force; the last one cannot be ignored."""

CHECK_SECONDS: Final = 0.02


def send_step(step: Step, pid: int, urgent_signal: int) -> None:
    """Send what a step says to one child; a child that is gone already is no error.

    Args:
        step: One of `STEPS`.
        pid: The child, which leads a process group of its own.
        urgent_signal: What ``urge`` sends.
    """
    try:
        if step.name == "kill":
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM if step.name == "ask" else urgent_signal)
    except ProcessLookupError:
        return
    except PermissionError:
        # macOS says this of a group in which only zombies are left.
        return


def group_runs(pid: int) -> bool:
    """Tell whether any process is left in a child's group."""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False
    return True


def read_orders(pipe: IO[str]) -> dict[int, int]:
    """Follow the supervisor until it ends.

    Args:
        pipe: The lines that the module's text describes.

    Returns:
        Urgent signal by process group of what still has to be ended; empty after an orderly end.
    """
    groups: dict[int, int] = {}
    for line in pipe:
        order, text = line[:1], line[1:].split()
        if order == "+":
            groups[int(text[0])] = int(text[1])
        elif order == "-":
            groups.pop(int(text[0]), None)
        else:
            sys.exit()
    return groups


def end_groups(groups: dict[int, int]) -> None:
    """Take process groups through `STEPS` until nothing of them is left.

    Args:
        groups: Urgent signal by process group.
    """
    for step in STEPS:
        for pid, urgent_signal in groups.items():
            send_step(step, pid, urgent_signal)
        deadline = time.monotonic() + step.seconds
        while any(group_runs(pid) for pid in groups) and time.monotonic() < deadline:
            time.sleep(CHECK_SECONDS)


def main() -> None:
    """Watch until the supervisor has gone, then clean up after it."""
    # A service manager signals all processes of a service at once; this one has to outlive the supervisor.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    end_groups(read_orders(sys.stdin))
    if command := sys.argv[1:]:
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
