"""HTTP headers of a client's requests, from the command line, from a file or from the environment.

Every user of a machine can read the command lines of all its processes, so a token belongs into a file or a variable.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

HEADERS_VARIABLE: Final = "MCP_CELERY_CLIENT_HEADERS"
"""Headers of every request, one a line."""


@dataclass(frozen=True, slots=True)
class Headers:
    """Headers to send with each request.

    Attributes:
        sent: Values by name. Not in the ``repr``, since they may be secret.
        options: The options of the command line that say so again, without secrets.
    """

    sent: dict[str, str] = field(repr=False)
    options: tuple[str, ...] = ()


def read_headers(given: Sequence[str]) -> Headers:
    """Read the values of ``--header``, and the variable. Of one name the last counts, the variable's before all.

    Args:
        given: ``NAME: VALUE``, or ``@FILE`` with such lines.

    Raises:
        click.BadParameter: A line is no header, or a file cannot be read. The text shows no line: it may be a secret.
    """
    found: dict[str, tuple[str, str]] = {}
    options: list[str] = []
    if from_environment := os.environ.get(HEADERS_VARIABLE):
        found |= _read_lines(from_environment, HEADERS_VARIABLE)
    for value in given:
        if value.startswith("@"):
            found |= _read_lines(_text_of(value[1:]), value)
            options += ["--header", value]
        else:
            name, content = _read(value, "")
            found[name.lower()] = name, content
            options += ["--header", f"{name}: …"]
    return Headers(dict(found.values()), tuple(options))


def _text_of(file: str) -> str:
    try:
        return Path(file).read_text(encoding="ascii")
    except OSError as error:
        raise click.BadParameter(f"@{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.BadParameter(f"@{file} is not in ASCII") from None


def _read_lines(text: str, source: str) -> dict[str, tuple[str, str]]:
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1)]
    headers = [_read(line, f"{source}, line {number}: ") for number, line in lines if line.strip()]
    return {name.lower(): (name, content) for name, content in headers}


def _read(line: str, where: str) -> tuple[str, str]:
    name, colon, content = line.partition(":")
    if not (colon and name.strip() and line.isprintable() and line.isascii()):
        raise click.BadParameter(f"{where}expected 'NAME: VALUE' in ASCII")
    return name.strip(), content.strip()
