"""How a task looks at the terminal: the bar while it runs. And the index that the demo's tool returns."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, cast

from pydantic import BaseModel
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from mcp_celery.cli.output import at_words
from mcp_celery.cli.remote.outcome import Outcome, outcome_of
from mcp_celery.client import TaskState

PLAIN_STEP: Final = 10
"""Percent. Without a terminal, a line is printed each time this much more of the work is done."""
LANGUAGES_SHOWN: Final = 12
LARGEST_SHOWN: Final = 5
WIDE_CHARS: Final = 70
"""A narrower terminal gets a shorter bar, so that the percentage and the time stay visible."""


class LanguageView(BaseModel):
    """The files of one language."""

    language: str
    files: int
    lines: int
    bytes: int


class FileView(BaseModel):
    """One file."""

    path: str
    lines: int
    bytes: int


class IndexView(BaseModel):
    """The result of the demo's tool ``index_folder``, as far as it is shown."""

    files: int
    lines: int
    bytes: int
    skipped: int
    languages: list[LanguageView]
    largest: list[FileView]
    digest: str


class _BarAndMessage(Progress):
    """The bar on one line, and the message below it, cut to the terminal's width."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The parts, from above."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            lost = cast("str", task.fields.get("lost") or "")
            if text := lost or task.description:
                yield Text(f"  {text}", style="red" if lost else "", no_wrap=True, overflow="ellipsis")


class ProgressView:
    """Shows how far a task is: a live bar on a terminal that can draw one, else a line now and then. A context manager.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        # A dumb terminal (TERM=dumb) cannot draw a line anew: it would show nothing before the end.
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        self._bar = _BarAndMessage(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[status]}"),
            BarColumn(bar_width=32 if console.width >= WIDE_CHARS else 10),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._row = self._bar.add_task("waiting for the worker", total=None, status="working", lost="")
        self._done = 0.0
        self._total: float | None = None
        self._next_line = 0
        self._status = ""
        self._message = ""
        self._is_lost = False
        self.changes = 0

    def __enter__(self) -> Self:
        """Start to show."""
        if self._is_live:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the last state standing."""
        if self._is_live:
            self._bar.stop()

    @contextmanager
    def paused(self) -> Generator[None]:
        """Take the bar away for as long as the context lasts: the user is asked something."""
        is_shown = self._bar.live.is_started
        if is_shown:
            self._bar.stop()
        try:
            yield
        finally:
            if is_shown:
                self._bar.start()

    def show_lost(self, seconds_left: float | None) -> None:
        """Show that the server does not answer, or that it does again.

        Args:
            seconds_left: For how long it is tried; None: the server answers.
        """
        lost = seconds_left is not None
        if lost:
            left = max(0, round(seconds_left or 0))
            text = f"connection lost, retrying for {left // 60}:{left % 60:02}"
            self._bar.update(self._row, lost=text)
        elif self._is_lost:
            text = "connected again"
            self._bar.update(self._row, lost="")
        else:
            return
        if lost != self._is_lost and not self._is_live:
            print_line(self._console, text)
        self._is_lost = lost

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        print_line(self._console, text)

    def show(self, update: TaskState) -> None:
        """Show one change.

        Args:
            update: The task's state.
        """
        self.changes += 1
        progress = update.progress
        if progress and progress.progress >= self._done:
            self._done, self._total = progress.progress, progress.total
        if update.status == "completed":
            # Numbers are pushed so many times a second; the last of them may have been left out, the end never is.
            self._done = self._total = self._total or self._done or 1
        failed = outcome_of(update) is Outcome.FAILED
        self._bar.update(
            self._row,
            completed=self._done,
            total=self._total,
            # What a failed tool says is printed once, as the result.
            description="" if failed else printable(update.status_message or "", lines=False),
            status="[red]failed" if failed else update.status,
        )
        if not self._is_live:
            self._print_line(update)

    def _print_line(self, update: TaskState) -> None:
        percent = int(max(0, min(100 * self._done / self._total, 100))) if self._total else 0
        message = printable(update.status_message or "", lines=False)
        # Without a total the share is unknown, so only the message is shown.
        is_news = not self._total and message != self._message
        if update.is_final or update.status != self._status or percent >= self._next_line or is_news:
            self._next_line, self._status, self._message = percent + PLAIN_STEP, update.status, message
            failed = outcome_of(update) is Outcome.FAILED
            line = f"{percent:3}%  failed" if failed else f"{percent:3}%  {update.status}  {message}"
            print_line(self._console, line)


def printable(text: str, *, lines: bool = True) -> str:
    """A text without what a terminal would obey: what a server sends is for reading only.

    Args:
        text: Any text.
        lines: Whether it may have several lines; else they become one.
    """
    kept = "\n\t" if lines else ""
    return "".join(one if one in kept or one.isprintable() else " " for one in text)


def print_line(console: Console, text: str, *, style: str = "") -> None:
    """Print a line as it is: ids and URLs are neither wrapped nor taken for markup."""
    console.print(printable(text), soft_wrap=True, markup=False, highlight=False, style=style or None)


def print_error(text: str) -> None:
    """Print what went wrong, on standard error; on a terminal wrapped at words."""
    print_line(Console(stderr=True), at_words(f"Error: {text}", sys.stderr), style="red")


def print_index(console: Console, structured: Any) -> None:
    """Print an index.

    Args:
        console: Where to.
        structured: The tool's structured result.

    Raises:
        ValueError: It is no index.
    """
    index = IndexView.model_validate(structured)
    table = Table("language")
    for heading in ("files", "lines", "bytes"):
        table.add_column(heading, justify="right")
    for row in index.languages[:LANGUAGES_SHOWN]:
        table.add_row(row.language, f"{row.files:,}", f"{row.lines:,}", f"{row.bytes:,}")
    if others := index.languages[LANGUAGES_SHOWN:]:
        sums = (sum(getattr(row, name) for row in others) for name in ("files", "lines", "bytes"))
        table.add_row(f"{len(others)} more", *(f"{number:,}" for number in sums))
    table.add_section()
    table.add_row("all", f"{index.files:,}", f"{index.lines:,}", f"{index.bytes:,}", style="bold")
    console.print(table)
    print_line(console, "Largest files:")
    for file in index.largest[:LARGEST_SHOWN]:
        print_line(console, f"  {file.bytes:>10,} bytes  {file.lines:>7,} lines  {file.path}")
    print_line(console, f"Digest of all {index.files:,} files: sha256:{index.digest}")
