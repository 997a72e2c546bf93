"""``mcp-celery client-config``: the entry by which a desktop client finds a server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from mcp_celery.cli.clients.known import KNOWN, DesktopClient, Entry, Launch
from mcp_celery.cli.clients.merging import Change
from mcp_celery.cli.errors import RunError, StartError, start_errors
from mcp_celery.cli.output import wants_colour
from mcp_celery.common.escaping import escaped
from mcp_celery.common.import_path import put_on_path
from mcp_celery.default_app import default_app
from mcp_celery.errors import ConfigurationError
from mcp_celery.server.celery_tasks import CeleryTasks, tasks_of
from mcp_celery.server.loading import load_source
from mcp_celery.settings import ENV_PREFIX, MEMORY_URL

REDIS_URL: Final = f"{ENV_PREFIX}REDIS_URL"
NO_POLLING: Final = (
    "the server has no polling tools. A client that knows no tasks waits for each call, gives up after a while, and "
    "cannot call a tool with mode='required' at all. Add `add_polling_tools(after=5)` to the server's module."
)
NEEDS_WORKER: Final = "a worker has to run for this server."
OWN_JOBS: Final = (
    f"tasks are kept at {REDIS_URL}, by default redis://127.0.0.1:6379/0, and workers of the server's app have to "
    f"run. Name another Redis with --env {REDIS_URL}=redis://…"
)
IN_MEMORY: Final = (
    f"the client starts the server with {REDIS_URL}={MEMORY_URL}: the server runs its jobs itself, and its tasks end "
    f"with it. For tasks that outlive it, name a Redis that a worker uses, too: --env {REDIS_URL}=redis://…"
)
NOT_COPIED: Final = f"{REDIS_URL} of this terminal was not copied, because it may hold a password."
COLOURS: Final = {"+": "green", "-": "red", "@": "cyan"}


@dataclass(frozen=True, slots=True)
class Described:
    """The user's server, as an entry describes it.

    Args:
        name: By which the client calls it.
        launch: How the client starts it; None where it runs already.
        url: Where it runs; None where the client starts it.
        notes: What the user should know, a line each.
    """

    name: str
    launch: Launch | None
    url: str | None
    notes: tuple[str, ...]

    def entry(self, client: DesktopClient) -> Entry:
        """The entry for a client."""
        if self.url is not None:
            return client.http(self.url)
        if self.launch is None:
            raise ValueError("neither a URL nor a command")
        return client.stdio(self.launch)


def client_config(  # noqa: PLR0913, PLR0917 - one for each argument and option of the command
    server: str | None,
    client: str | None,
    http: str | None,
    name: str | None,
    env: Mapping[str, str],
    app_dir: Path | None,
    write: bool,
    file: Path | None,
    yes: bool,
) -> None:
    """Print the entry of a server, or merge it into a client's file.

    Args:
        server: The user's server, as :func:`mcp_celery.server.loading.load_source` takes it; None: ``http`` and
            ``name`` say all.
        client: One of `KNOWN`; None: print the entries of all.
        http: Where the server runs; None: the client starts it, on stdio.
        name: By which the client calls it; None: the server's own name.
        env: Variables that the client sets when it starts the server.
        app_dir: Folder in which the server's module is looked for first; None: the current one.
        write: Whether to merge the entry into the client's file.
        file: The file; None: the one that the client reads.
        yes: Whether to write without asking.
    """
    if write and client is None:
        raise StartError("--write needs --client: one of " + ", ".join(KNOWN))
    described = _describe(server, http=http, name=name, env=env, app_dir=app_dir)
    for note in described.notes:
        click.echo(f"Note: {note}", err=True)
    if client is None:
        for known in KNOWN.values():
            click.echo(f"# {known.title}: {known.file()}")
            click.echo(_snippet(known, described))
    elif write:
        _merge(KNOWN[client], described, file or KNOWN[client].file(), ask=not yes)
    else:
        known = KNOWN[client]
        click.echo(_snippet(known, described))
        click.echo(f"Put this into {file or known.file()}, or add --write. {known.afterwards}", err=True)


def _snippet(client: DesktopClient, described: Described) -> str:
    return json.dumps({client.section: {described.name: described.entry(client)}}, indent=2, ensure_ascii=False)


def _describe(
    server: str | None, *, http: str | None, name: str | None, env: Mapping[str, str], app_dir: Path | None
) -> Described:
    if server is None:
        if http is None or name is None:
            raise StartError("name the server, as module:attribute or as a file; or give both --http and --name")
        return Described(name, None, http, ())
    # A module may print while it is imported; standard output is the entry alone.
    with start_errors(), redirect_stdout(sys.stderr):
        put_on_path(app_dir or Path.cwd())
        source = load_source(server)
    try:
        tasks = tasks_of(source.server)
    except ConfigurationError:
        tasks = None
    notes = () if tasks is None else tuple(_notes_of_tools(tasks))
    if http is not None:
        return Described(name or source.name, None, http, notes)
    if tasks is None or not tasks.components():
        variables = dict(env)
    else:
        variables, of_store = _with_store(tasks, env)
        notes = (*notes, *of_store)
    return Described(name or source.name, _launch(server, variables, app_dir), None, notes)


def _notes_of_tools(tasks: CeleryTasks) -> list[str]:
    if tasks.host.polling is not None or not any(kind == "tool" for kind, _ in tasks.components()):
        return []
    return [NO_POLLING]


def _with_store(tasks: CeleryTasks, env: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The variables, with a store among them, and a remark about it."""
    if REDIS_URL in env:
        return dict(env), [] if env[REDIS_URL].startswith(MEMORY_URL) else [NEEDS_WORKER]
    if tasks.celery is not default_app or tasks.exposes_jobs:
        return dict(env), [OWN_JOBS]
    notes = [IN_MEMORY, NOT_COPIED] if os.environ.get(REDIS_URL) else [IN_MEMORY]
    return {**env, REDIS_URL: MEMORY_URL}, notes


def _launch(server: str, env: Mapping[str, str], app_dir: Path | None) -> Launch:
    program = Path(sys.executable).with_name("mcp-celery")
    command, first = (str(program), ()) if program.exists() else (sys.executable, ("-m", "mcp_celery"))
    module, colon, attribute = server.partition(":")
    if module.endswith(".py"):
        named: tuple[str, ...] = (f"{Path(module).resolve()}{colon}{attribute}",)
    else:
        named = (server, "--app-dir", str((app_dir or Path.cwd()).resolve()))
    return Launch(command=command, args=(*first, "serve", *named, "--transport", "stdio"), env=env)


def _merge(client: DesktopClient, described: Described, file: Path, *, ask: bool) -> None:
    change = Change.prepare(file, client.section, described.name, described.entry(client))
    if not change.is_needed:
        click.echo(f"{change.file} has this entry already.")
        return
    colour = wants_colour(sys.stdout)
    for line in change.lines():
        text = escaped(line, keep="\t")
        click.echo(click.style(text, fg=COLOURS.get(line[:1])) if colour else text)
    if ask:
        if not sys.stdin.isatty():
            raise StartError(f"{change.file} was left as it is: there is no terminal to ask at, so add --yes")
        if not click.confirm(f"Write this to {change.file}?"):
            raise RunError(f"{change.file} was left as it is")
    copy = change.write()
    click.echo(f"{change.file} was written{f'; the file before it is {copy}' if copy else ''}. {client.afterwards}")
