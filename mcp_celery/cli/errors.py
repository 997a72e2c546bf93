"""How commands fail: one clear line on standard error and an exit status. Of the user's own code the traceback comes
before.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import click

from mcp_celery.cli.body import Body
from mcp_celery.cli.output import error_text
from mcp_celery.embedded import EmbeddedStoreError
from mcp_celery.errors import ConfigurationError
from mcp_celery.server.loading import ServerImportError

_PRINT_TRACEBACK: Final = Body("mcp_celery.cli.tracebacks:print_traceback")
"""Loaded when it is needed: a server needs no terminal library."""


class CommandError(click.ClickException):
    """An error that ends a command with one clear line, which is wrapped at words on a terminal."""

    def format_message(self) -> str:
        """The text as it is shown."""
        return error_text(self.message)


class StartError(CommandError):
    """What the user asked for cannot be started as it stands; exit status 2, as for a wrong option."""

    exit_code = 2


class CodeError(StartError):
    """The user's code cannot be imported, or declares what cannot be served: a change of it may help."""


class RunError(CommandError):
    """Something that had been started went wrong; exit status 1."""

    exit_code = 1


@contextmanager
def start_errors() -> Generator[None]:
    """Turn the errors that name a setting, a module or a missing store into `StartError`."""
    try:
        yield
    except ServerImportError as error:
        _PRINT_TRACEBACK(error=error.__cause__)
        raise StartError(" ".join(str(error).split())) from error
    except ConfigurationError as error:
        raise StartError(" ".join(str(error).split())) from error
    except EmbeddedStoreError as error:
        # Not folded into one line: it may end with the last lines of the store's log.
        raise StartError(str(error)) from error
