"""How commands fail: one clear line on standard error and an exit status, never a traceback."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import click

from mcp_celery.embedded import EmbeddedStoreError
from mcp_celery.errors import ConfigurationError


class StartError(click.ClickException):
    """What the user asked for cannot be started as it stands; exit status 2, as for a wrong option."""

    exit_code = 2


class RunError(click.ClickException):
    """Something that had been started went wrong; exit status 1."""

    exit_code = 1


@contextmanager
def start_errors() -> Generator[None]:
    """Turn the errors that name a setting, a module or a missing store into `StartError`."""
    try:
        yield
    except ConfigurationError as error:
        raise StartError(" ".join(str(error).split())) from error
    except EmbeddedStoreError as error:
        # Not folded into one line: it may end with the last lines of the store's log.
        raise StartError(str(error)) from error
