"""The command ``mcp-celery``."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from mcp_celery.cli.commands import COMMANDS
from mcp_celery.cli.output import error_text


class _Commands(click.Group):
    """The commands; on a terminal the text of a wrong command line is wrapped at words."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Parse the options that stand in front of a command."""
        with _usage_errors_wrapped():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse the options of a command, and run it."""
        with _usage_errors_wrapped():
            return super().invoke(ctx)


@contextmanager
def _usage_errors_wrapped() -> Generator[None]:
    try:
        yield
    except NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        # Made anew, because the texts of its subclasses are put together when they are shown.
        text = error_text(error.format_message())
        raise click.UsageError(text, ctx=error.ctx) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mcp-celery-backend")
def cli() -> None:
    """Background tasks of MCP servers, run by Celery."""


for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line. Modules are found in the current folder first, as with ``celery`` and ``uvicorn``."""
    sys.path.insert(0, str(Path.cwd()))
    cli(prog_name="mcp-celery")
