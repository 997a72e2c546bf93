"""Its jobs, as people write them."""

import importlib.util
import os
import time
from datetime import date
from pathlib import Path
from typing import Any

from celery import chain, chord, group
from celery.canvas import Signature

from reports.app import app

HOLD_SECONDS = 300.0


class NoSuchYearError(Exception):
    """What a job raises of its own."""


def hold(gate: str) -> None:
    """Arrive at a gate of the test, and wait until it is open."""
    folder = Path(gate)
    with (folder / "arrived").open("a") as file:
        file.write(f"{os.getpid()}\n")
    deadline = time.monotonic() + HOLD_SECONDS
    while not (folder / "opened").exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@app.task
def build(year: int, region: str = "all", *, draft: bool = False) -> dict[str, Any]:
    """Build the yearly report."""
    return {"year": year, "region": region, "draft": draft}


@app.task
def surroundings() -> dict[str, Any]:
    """Where it runs, and what is installed there."""
    return {"pid": os.getpid(), "ours": importlib.util.find_spec("mcp_celery.keys") is not None}


@app.task(bind=True)
def slowly(self: Any, gate: str, current: int = 3, total: int = 10, message: str | None = None) -> str:
    """Tell how far it is, and go on when the gate is open."""
    self.update_state(state="PROGRESS", meta={"current": current, "total": total, "message": message})
    hold(gate)
    return "done"


@app.task(bind=True)
def in_own_state(self: Any, gate: str) -> str:
    self.update_state(state="UPLOADING", meta={"percent": 50})
    hold(gate)
    return "uploaded"


@app.task
def wait(gate: str, note: str = "ended") -> str:
    hold(gate)
    with (Path(gate) / "notes").open("a") as file:
        file.write(f"{note}\n")
    return note


@app.task
def raises(year: int) -> int:
    raise NoSuchYearError(f"there is no report of {year}")


@app.task(bind=True, max_retries=3)
def flaky(self: Any, folder: str) -> int:
    """Work at the third try; between the tries it waits for the gate."""
    tries = Path(folder) / "tries"
    done = len(tries.read_text()) if tries.exists() else 0
    tries.write_text("x" * (done + 1))
    if done < 2:
        hold(folder)
        raise self.retry(exc=ConnectionError("the source is away"), countdown=0.2)
    return done + 1


@app.task(soft_time_limit=1)
def too_slow() -> None:
    time.sleep(HOLD_SECONDS)


@app.task
def dies() -> None:
    os._exit(9)


@app.task(bind=True)
def routed(self: Any) -> str:
    """The queue that it came by."""
    return self.request.delivery_info["routing_key"]


@app.task
def dated(day: date) -> str:
    """Tell what it was given."""
    return f"{type(day).__name__} {day}"


@app.task(ignore_result=True)
def forgetful() -> str:
    return "never stored"


@app.task
def add(left: int, right: int) -> int:
    return left + right


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def part_of(gate: str, number: int) -> int:
    """A part that waits for a gate, when it has a number above 1."""
    if number > 1:
        hold(gate)
    return number


@app.task
def odd_fails(number: int) -> int:
    if number % 2:
        raise NoSuchYearError(f"{number} is odd")
    return number


def added_up(first: int, second: int, third: int) -> Signature:
    """Add three numbers, one after the other."""
    return chain(add.s(first, second), add.s(third))


def side_by_side(gate: str, count: int) -> Signature:
    """Parts side by side."""
    return group(part_of.s(gate, number) for number in range(1, count + 1))


def in_total(gate: str, count: int) -> Signature:
    """Parts side by side, and their total."""
    return chord([part_of.s(gate, number) for number in range(1, count + 1)], total.s())


def with_a_failing_part(count: int) -> Signature:
    return chord([odd_fails.s(number) for number in range(count)], total.s())


def of_forgetful_jobs() -> Signature:
    """None of its jobs stores its result, unless it is told to."""
    return chain(chord([forgetful.s(), forgetful.s()], forgetful.si()), group(forgetful.si(), forgetful.si()))
