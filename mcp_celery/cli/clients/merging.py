"""Writing an entry into a client's file: shown before, with a copy of the file as it was."""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcp_celery.cli.clients.jsonc import JsonFileError, JsonText
from mcp_celery.cli.errors import RunError, StartError

MAX_BYTES: Final = 5_000_000
"""Of a file that is changed. People write such files; a larger one is something else."""
BYTE_ORDER_MARK: Final = "\ufeff"


@dataclass(frozen=True, slots=True)
class Change:
    """A change to a file that is not written yet.

    Args:
        file: The file itself, where its name is a link.
        before: Its text; None: there is no such file.
        after: Its text with the entry.
    """

    file: Path
    before: str | None
    after: str

    @classmethod
    def prepare(cls, file: Path, section: str, name: str, entry: object) -> Change:
        """Read a file, and put an entry into its text.

        Args:
            file: The file; it need not exist.
            section: The object that holds the entries.
            name: Name of the entry.
            entry: What JSON can say.

        Raises:
            StartError: The file cannot be read or understood. It is named with the line.
        """
        file = file.resolve()
        before = _read(file)
        text = (before or "").removeprefix(BYTE_ORDER_MARK)
        mark = BYTE_ORDER_MARK if before and before.startswith(BYTE_ORDER_MARK) else ""
        try:
            return cls(file, before, mark + JsonText(text).with_entry(section, name, entry))
        except JsonFileError as error:
            raise StartError(f"{file}:{error.line}: {error.problem}; the file was left as it is") from error

    @property
    def is_needed(self) -> bool:
        """Whether anything changes."""
        return self.before != self.after

    def lines(self) -> list[str]:
        """The change as a unified diff, a line each."""
        before, after = (self.before or "").splitlines(), self.after.splitlines()
        source = os.devnull if self.before is None else str(self.file)
        return list(difflib.unified_diff(before, after, source, str(self.file), n=1, lineterm=""))

    def write(self) -> Path | None:
        """Write the file, in one step, after copying what it was.

        Returns:
            The copy; None where there was no file.

        Raises:
            RunError: The file was changed meanwhile, or cannot be written.
        """
        try:
            if _read(self.file) != self.before:
                raise RunError(f"{self.file} was changed by another program meanwhile; try again")
            self.file.parent.mkdir(parents=True, exist_ok=True)
            kept = None if self.before is None else _copied(self.file)
            _replace(self.file, self.after)
        except OSError as error:
            raise RunError(f"{self.file} cannot be written: {error.strerror}") from error
        return kept


def _read(file: Path) -> str | None:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartError(f"{file} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise StartError(f"{file} has more than {MAX_BYTES} bytes, which no client's configuration has")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise StartError(f"{file}:{line}: not UTF-8; the file was left as it is") from error


def _copied(file: Path) -> Path:
    """Copy a file beside itself, under a name that is free."""
    number = 0
    while True:
        copy = file.with_name(f"{file.name}.bak{f'.{number}' if number else ''}")
        try:
            _created(copy, file.read_bytes(), like=file)
        except FileExistsError:
            number += 1
        else:
            return copy


def _replace(file: Path, text: str) -> None:
    """Write a file in one step: a client that reads it meanwhile sees the old or the new text, and nothing between."""
    written = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        _created(written, text.encode(), like=file if file.exists() else None)
        written.replace(file)
    finally:
        written.unlink(missing_ok=True)


def _created(path: Path, data: bytes, *, like: Path | None) -> None:
    """Write a new file with the rights of another, which may keep others from reading it."""
    opener: Callable[[str, int], int] = lambda name, flags: os.open(name, flags, 0o600 if like else 0o666)  # noqa: E731
    with open(path, "xb", opener=opener) as file:
        file.write(data)
    if like:
        shutil.copymode(like, path)
