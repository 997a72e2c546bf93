"""The command ``mcp-celery``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mcp_celery.cli.call import call
from mcp_celery.cli.demo import demo
from mcp_celery.cli.dev import dev
from mcp_celery.cli.keygen import keygen
from mcp_celery.cli.serve import serve
from mcp_celery.cli.store import store
from mcp_celery.cli.task import task


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mcp-celery-backend")
def cli() -> None:
    """Background tasks of MCP servers, run by Celery."""


for command in (call, demo, dev, keygen, serve, store, task):
    cli.add_command(command)


def main() -> None:
    """Run the command line. Modules are found in the current folder first, as with ``celery`` and ``uvicorn``."""
    sys.path.insert(0, str(Path.cwd()))
    cli(prog_name="mcp-celery")
