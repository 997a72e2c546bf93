"""Shared by the operators' commands: finding the tasks, and reporting a failure."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

import click
from celery import Celery
from rich.console import Console

from mcp_celery.cli.errors import RunError, start_errors
from mcp_celery.cli.remote.render import printable
from mcp_celery.errors import QueueUnavailableError, StoredDataError, StoreUnavailableError
from mcp_celery.operate.site import Open, Site, UnreachableStoreError, find_site
from mcp_celery.operate.tasks import AmbiguousTaskError


def site_of(app: str | None, server: str | None, namespace: str | None) -> Site:
    """Find out which tasks are meant.

    Args:
        app: How the command line names the Celery app. Under ``celery -A proj`` the app is Celery's.
        server: The server, as it is named.
        namespace: The namespace, as it is named.

    Raises:
        StartError: A setting is refused, or a server cannot be imported.
    """
    without_log()
    with start_errors():
        return find_site(app or app_of_celery(), server, namespace)


def without_log() -> None:
    """Keep the lines that servers log out of the terminal: a command prints once what went wrong."""
    logger = logging.getLogger("mcp_celery")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


def app_of_celery() -> Celery | None:
    """The app of ``celery -A``; None under ``mcp-celery``, and where Celery was given none."""
    root = click.get_current_context().find_root()
    found: object = getattr(root.obj, "app", None)
    return cast("Celery", found) if isinstance(found, Celery) and root.params.get("app") else None


def run(site: Site, body: Callable[[list[Open]], Awaitable[None]]) -> None:
    """Open the tasks of a site, and do something with them.

    Raises:
        RunError: The store or the broker does not answer, or the task is not found.
        StartError: Tasks are kept in their server's process.
    """

    async def main() -> None:
        async with site.opened() as servers:
            await body(servers)

    try:
        with start_errors():
            asyncio.run(main())
    except (UnreachableStoreError, AmbiguousTaskError) as error:
        raise RunError(str(error)) from error
    except StoredDataError as error:
        raise RunError(f"the task store holds something that cannot be read: {error.reason}") from error
    except (StoreUnavailableError, QueueUnavailableError) as error:
        raise RunError(str(error)) from error


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    click.echo(json.dumps(value, ensure_ascii=True))


def terminal() -> Console:
    """Standard output. rich leaves colours out where it is no terminal, and where ``NO_COLOR`` says so."""
    return Console(highlight=False, markup=False)


def cell(text: object) -> str:
    """A text without what a terminal would obey: names of components and scopes are others' choice."""
    return printable(str(text), lines=False)
