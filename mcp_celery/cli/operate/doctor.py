"""``mcp-celery doctor``: check a deployment, one line each."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

import click
from rich.text import Text

from mcp_celery.cli.operate.running import app_of_celery, cell, print_json, terminal, without_log
from mcp_celery.operate.doctor.examining import examine
from mcp_celery.operate.doctor.findings import Finding, Level

STYLES: Final[dict[Level, str]] = {"ok": "green", "warning": "yellow", "error": "bold red"}


def doctor(server: str | None, named: str | None, namespace: str | None, machine: bool, app: str | None) -> None:
    """Check a deployment, and end the process with status 1 where something is wrong.

    Args:
        server: The server, as the argument names it.
        named: The server, as ``--server`` names it.
        namespace: The server's namespace.
        machine: Whether to print JSON.
        app: The Celery app, as it is named.

    Raises:
        UsageError: The argument and ``--server`` name different servers.
    """
    if None not in (server, named) and server != named:
        raise click.UsageError(f"SERVER is {server}, and --server is {named}: name one of them")
    spec = server or named
    without_log()
    console = terminal()
    celery = app or app_of_celery()

    async def main() -> list[Finding]:
        found: list[Finding] = []
        async for finding in examine(celery, spec, namespace, os.environ):
            found.append(finding)
            if machine:
                print_json(
                    {"area": finding.area, "level": finding.level, "text": finding.text, "setting": finding.setting}
                )
            else:
                console.print(_line(finding), soft_wrap=True)
        return found

    found = asyncio.run(main())
    errors = sum(one.level == "error" for one in found)
    warnings = sum(one.level == "warning" for one in found)
    if not machine:
        console.print(f"{_counted(errors, 'error')}, {_counted(warnings, 'warning')}")
    sys.exit(1 if errors else 0)


def _line(finding: Finding) -> Text:
    line = Text()
    line.append(f"{finding.level:<8}", style=STYLES[finding.level])
    line.append(f"{finding.area:<9}{cell(finding.text)}")
    if finding.setting is not None:
        line.append(f" (change: {cell(finding.setting)})")
    return line


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
