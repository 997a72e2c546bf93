"""The command ``mcp-celery``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mcp_celery.cli.commands import COMMANDS


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mcp-celery-backend")
def cli() -> None:
    """Background tasks of MCP servers, run by Celery."""


for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line. Modules are found in the current folder first, as with ``celery`` and ``uvicorn``."""
    sys.path.insert(0, str(Path.cwd()))
    cli(prog_name="mcp-celery")
