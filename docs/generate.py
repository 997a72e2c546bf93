"""Writes the pages that are made from the code: ``make docs``.

``configuration.md`` is made from the settings model and ``TaskConfig``, ``commands.md`` from the command line,
``errors.md`` from the classes of ``mcp_celery.errors``. Links to the project's repository get the address in
``pyproject.toml``.
"""

from __future__ import annotations

import inspect
import re
import sys
import tomllib
from collections.abc import Callable, Generator, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Final

import click

from mcp_celery import errors
from mcp_celery.cli.main import cli
from mcp_celery.config import CeleryOption, Channel, TaskConfig, celery_options_of
from mcp_celery.settings import ENV_PREFIX, Settings

FOLDER: Final = Path(__file__).parent
ROOT: Final = FOLDER.parent
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS: Final[str] = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
"""Owner and name of the project's repository on GitHub."""
OWN_LINK: Final = re.compile(
    rf"(?<=https://github\.com/)[\w.-]+/{re.escape(PROJECT['name'])}\b"
    rf"|(?<=https://raw\.githubusercontent\.com/)[\w.-]+/{re.escape(PROJECT['name'])}\b"
)
LINKING: Final = [*ROOT.glob("*.md"), ROOT / "zensical.toml", ROOT / "pyproject.toml", *FOLDER.rglob("*.md")]
"""The files that may link to the repository."""

HEAD = """# Configuration

Every setting is an environment variable. A value that is zero, negative, contradictory or of another form is refused at
start, with an error that names the variable. Servers and workers of one namespace must agree on all of them; the
timeouts and limits at the end may differ.

This page is made from the settings model and from `TaskConfig` by `make docs`.

| Variable | Default | |
|---|---|---|
"""

TAIL = """
## URLs

`MCP_CELERY_REDIS_URL` is redis-py's form: `redis://`, `rediss://` or `unix:///path/to.sock?db=0`, with its options;
also `valkey://` and `valkeys://`, and `sentinel://HOST:PORT,HOST:PORT/MASTER/DB` for
[Redis Sentinel](redis.md#sentinel). [Redis connections](redis.md) has options, TLS, passwords that change, and the
rights of users. The broker and the result backend may be anything of Celery's, for example `amqp://…` and
`db+postgresql://…`; where they are not set they are the Redis URL. `rpc://` and `disabled://` are refused as result
backends: the first delivers each result once, to the process that sent the job, and the second keeps none.

## The command line's own

`mcp-celery call` and `mcp-celery task` read one variable, which no server and no worker reads:
`MCP_CELERY_CLIENT_HEADERS` holds HTTP headers of each request, as `NAME: VALUE`, one a line. They are sent to whatever
URL is typed. A `--header` of the same name wins.

## Time to live

A task is kept for the time that was granted when it was created: what its component declares
(`TaskConfig(ttl=…)`, milliseconds or a `timedelta`), else `MCP_CELERY_DEFAULT_TTL_MS`; never above
`MCP_CELERY_MAX_TTL_MS`, and never above the `result_expires` of the Celery app, since no task may outlive its stored
result. The granted value is the reported one, everywhere.

The time also passes while a task waits for a worker and while it runs. When it is over the task is gone, its job is
cancelled, and its result is lost: give a tool that takes long a `ttl` that holds the time in the queue, the time to run
and the time to read the result. While a task waits for an answer of its client, it
[lives longer](protocol.md#time-to-live).

## What a component declares

`@server.tool(task=…)`, `@server.prompt(task=…)` and `@server.resource(uri, task=…)` take `True`, `False` or a
`TaskConfig`. Celery's options carry Celery's names and units.

```python
from datetime import timedelta

from mcp_celery import TaskConfig

TaskConfig(
    mode="required",  # "forbidden", "optional" (task=True) or "required"
    ttl=timedelta(hours=2),  # or milliseconds
    poll_interval=2_000,  # for clients without push; milliseconds or a timedelta
    queue="gpu",
    time_limit=600,
    autoretry_for=(ConnectionError,),
    retry_backoff=True,  # after 1, 2, 4, … seconds
    show_arguments=["dataset"],
)
```

A value that Celery would reject is refused when the component is declared. `task_annotations` of the Celery app
override attributes of a job's class: `{"mcp.reports.tool.train": {"time_limit": 60}}`. A job's queue is what the
component declares, else a matching `task_routes` entry (`{"mcp.*.resource.*": {"queue": "reads"}}`), else the server's
own.

The last column says how an option reaches Celery. The class of an [exposed job](exposing-jobs.md) is declared
elsewhere, so options of such a job go with its messages.

| Option | Default | | Celery takes it as |
|---|---|---|---|
"""

CHANNELS: Final[dict[Channel, str]] = {
    "class": "attribute of the job's class",
    "header": "header of the message",
    "property": "property of the message",
    "route": "queue of the message",
}


def configuration() -> str:
    """The page of settings and options."""
    rows: list[str] = []
    for name, field in Settings.model_fields.items():
        default = "none" if field.default in (None, "") else f"`{field.default}`"
        rows.append(f"| `{ENV_PREFIX}{name.upper()}` | {default} | {field.description} |")
    return HEAD + "\n".join(rows) + "\n" + TAIL + "\n".join(options()) + "\n"


def channel_of(how: CeleryOption) -> str:
    """How an option reaches Celery, in words."""
    if how.exposed is None:
        return f"{CHANNELS[how.own]}; no effect on exposed jobs"
    return (
        CHANNELS[how.own] if how.exposed == how.own else f"{CHANNELS[how.own]}; exposed jobs: {CHANNELS[how.exposed]}"
    )


def options() -> list[str]:
    """A row for each option of a component, with what the docstring of ``TaskConfig`` says of it."""
    arguments = inspect.cleandoc(TaskConfig.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    described = dict(re.findall(r"^    (\w+): (.*?)(?=\n    \w+: |\Z)", arguments, re.MULTILINE | re.DOTALL))
    taken = celery_options_of(TaskConfig)
    rows: list[str] = []
    for field in fields(TaskConfig):
        meaning = " ".join(described[field.name].split()).replace("``", "`")
        default = "none" if field.default in (None, ()) else f"`{field.default!r}`"
        channel = channel_of(taken[field.name]) if field.name in taken else ""
        rows.append(f"| `{field.name}` | {default} | {meaning} | {channel} |")
    return rows


COMMANDS_HEAD = """# Command line

Every command of `mcp-celery`, as its `--help` prints it. This page is made from the commands by `make docs`.

`celery -A mcp_celery worker`, `beat` and `flower` are Celery's own commands. `mcp-celery tasks`, `workers` and `doctor`
are also commands of Celery, for an app of your own: `celery -A proj mcp doctor`. [Operations](operations.md#questions)
says which command answers which question, and [clients](clients.md#the-command-line) shows `tools`, `call` and `task`.
"""


def commands() -> str:
    """The page of commands."""
    return "\n".join([COMMANDS_HEAD, *_described(cli, "mcp-celery")])


def _described(group: click.Group, path: str) -> Generator[str]:
    """The help of each command of a group, and of the groups in it."""
    for name in sorted(group.commands):
        command, full = group.commands[name], f"{path} {name}"
        context = click.Context(command, info_name=full, help_option_names=["-h", "--help"], terminal_width=100)
        yield f"## {full}\n\n```text\n{command.get_help(context)}\n```\n"
        if isinstance(command, click.Group):
            yield from _described(command, full)


ERRORS_HEAD = """# Errors

Every error that this package answers requests with, or raises. `make docs` makes this page from `mcp_celery.errors`.

Each class is an `McpCeleryError`; `code` is its JSON-RPC code, and `data`, where it has some, is for programs. The
message of an error is one line, which names the setting or value at fault.
[Troubleshooting](troubleshooting.md#a-request-fails) says what to do about the usual ones, and the
[protocol](protocol.md#errors) which request gets which code.

| code | meaning |
|---|---|
| -32005 | a limit was reached; `data.limit` names it, and `data.retryAfterMs` says when to try again |
| -32020 | the header `Mcp-Name` names another task than the body (2026-07-28) |
| -32021 | the client did not declare the tasks extension, or, for a question, elicitation, sampling or roots |
| -32600 | the access token lacks scopes, which `data.requiredScopes` names |
| -32601 | the component does not run in this way, or the revision does not have the method |
| -32602 | arguments, ids, answers or cursors that are refused; unknown, foreign and expired tasks |
| -32603 | the server, the store, the broker, the result backend or the job failed; the message says which |

"""


def error_classes() -> list[type[errors.McpCeleryError]]:
    """The errors, by code and in the order of their module."""
    found = [
        one
        for one in vars(errors).values()
        if inspect.isclass(one) and issubclass(one, errors.McpCeleryError) and one is not errors.McpCeleryError
    ]
    return sorted(found, key=lambda one: -one.code)


def error_rows(classes: Iterable[type[errors.McpCeleryError]]) -> Generator[str]:
    """A row of the table for each error."""
    yield "| code | class | `data.limit` | when |"
    yield "|---|---|---|---|"
    for one in classes:
        summary = " ".join(inspect.cleandoc(one.__doc__ or "").split("\n\n")[0].split())
        meaning = re.sub(r":class:`(\w+)`", r"`\1`", summary).replace("``", "`")
        limit = getattr(one, "limit", "")
        yield f"| {one.code} | `{one.__name__}` | {f'`{limit}`' if limit else ''} | {meaning} |"


def error_page() -> str:
    """The page of errors."""
    return ERRORS_HEAD + "\n".join(error_rows(error_classes())) + "\n"


def addressed(text: str) -> str:
    """A text whose links to the project's repository have its address."""
    return OWN_LINK.sub(ADDRESS, text)


PAGES: Final[dict[str, Callable[[], str]]] = {
    "configuration.md": configuration,
    "commands.md": commands,
    "errors.md": error_page,
}


if __name__ == "__main__":
    for page, text in PAGES.items():
        (FOLDER / page).write_text(text())
        sys.stdout.write(f"docs/{page} is written\n")
    for path in LINKING:
        if (linked := addressed(before := path.read_text())) != before:
            path.write_text(linked)
            sys.stdout.write(f"the links of {path.relative_to(ROOT)} lead to {ADDRESS}\n")
