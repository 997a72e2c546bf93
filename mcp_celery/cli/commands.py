"""The commands as they are typed: names, arguments, options and help. What they do is imported when they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click

from mcp_celery.cli.arguments import JSONCommand, split_pairs
from mcp_celery.cli.body import Body
from mcp_celery.cli.options import (
    ALLOWED_HOST,
    ALLOWED_ORIGIN,
    CONCURRENCY,
    DATA_DIR,
    HEADER,
    HOST,
    MACHINE,
    POOL,
    PORT,
    SERVER,
    TASK_ID,
    URL,
    json_option,
)

STATUS_HELP: Final = (
    "Exit status: 0 completed; 1 failed; 2 wrong command line; 3 cancelled; 4 no such task; 5 the server cannot be "
    "reached; 6 the task goes on; 130 interrupted before there was a task."
)


def _pairs(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    return split_pairs(values)


call = JSONCommand(
    "call",
    callback=Body("mcp_celery.cli.call:call"),
    help="""Call TOOL of the MCP server at URL, and print its result.

    Where the server makes a task of the call, a bar shows how it goes, and Ctrl-C offers to cancel it or to leave it
    running. Questions are asked at the prompt, or answered by the lines that are piped in. Images and other files of
    the result are saved in the current folder.
    """,
    epilog=STATUS_HELP,
    params=[
        URL,
        HEADER,
        click.Argument(["tool"]),
        click.Option(
            ["--arg", "pairs"],
            multiple=True,
            callback=_pairs,
            metavar="NAME=VALUE",
            help="One argument, as the tool's schema has it.",
        ),
        json_option("All arguments as JSON. By itself: print JSON, for machines."),
        click.Option(
            ["--task/--no-task"], default=True, help="Let the server make a task of the call, as it likes. The default."
        ),
    ],
)

get = click.Command(
    "get",
    callback=Body("mcp_celery.cli.task:get"),
    help="Print how the task TASK_ID stands, and its result where it has one.",
    epilog=STATUS_HELP,
    params=[URL, HEADER, TASK_ID, MACHINE],
)

watch = click.Command(
    "watch",
    callback=Body("mcp_celery.cli.task:watch"),
    help="""Follow the task TASK_ID to its end, answer its questions at the prompt, and print its result.

    With --json each change is a line.
    """,
    epilog=STATUS_HELP,
    params=[URL, HEADER, TASK_ID, MACHINE],
)

cancel = click.Command(
    "cancel",
    callback=Body("mcp_celery.cli.task:cancel"),
    help="Ask the server to cancel the task TASK_ID, and print how it stands then.",
    epilog="Exit status: 0 the server took it; else as for `task get`.",
    params=[URL, HEADER, TASK_ID, MACHINE],
)

answer = JSONCommand(
    "answer",
    callback=Body("mcp_celery.cli.task:answer"),
    help="Answer what the task TASK_ID asks now, at the prompt or with --json, and print how it stands then.",
    epilog="Exit status: 0 the server took the answers; else as for `task get`.",
    params=[
        URL,
        HEADER,
        TASK_ID,
        json_option(
            'Answers by the keys of the questions: \'{"KEY": {"action": "accept", "content": {…}}}\'. '
            "By itself: print JSON, for machines."
        ),
    ],
)

task = click.Group(
    "task",
    help="Look after a task of an MCP server, by the id that `call` prints where it is left running.",
    commands=[get, watch, cancel, answer],
)

demo = click.Command(
    "demo",
    callback=Body("mcp_celery.cli.demo:demo"),
    help="""Watch a tool call run as a Celery job, its progress and its result pushed to the client. Another asks a
    question.

    To be run from a checkout of the project, which it indexes. It starts a server, a worker and a private store (unless
    MCP_CELERY_REDIS_URL names one), and ends them all.
    """,
)

dev = click.Command(
    "dev",
    callback=Body("mcp_celery.cli.dev:dev"),
    help="""Run SERVER with all it needs: a store, a Celery worker, and the MCP server over HTTP.

    SERVER is `module:attribute`. The store is a private one, unless MCP_CELERY_REDIS_URL names another. Ctrl-C stops
    everything: running jobs have five seconds to finish, a second Ctrl-C stops them sooner.
    """,
    params=[SERVER, HOST, PORT, ALLOWED_HOST, ALLOWED_ORIGIN, DATA_DIR, POOL, CONCURRENCY],
)

keygen = click.Command(
    "keygen",
    callback=Body("mcp_celery.cli.keygen:keygen"),
    help="""Make a key for MCP_CELERY_ENCRYPTION_KEYS, and print it.

    Servers and workers need the same keys. Several stand with commas between them, the newest first: it seals, and all
    of them open.
    """,
)

serve = click.Command(
    "serve",
    callback=Body("mcp_celery.cli.serve:serve"),
    help="""Serve SERVER, and nothing else: the worker and the broker run elsewhere.

    SERVER is `module:attribute`. HTTP clients connect to /mcp. On stdio, standard output carries the protocol alone.
    """,
    params=[
        SERVER,
        HOST,
        PORT,
        ALLOWED_HOST,
        ALLOWED_ORIGIN,
        click.Option(
            ["--transport"],
            type=click.Choice(["http", "stdio"]),
            default="http",
            show_default=True,
            help="How clients connect.",
        ),
        click.Option(["--fd"], type=click.IntRange(min=3), hidden=True, help="Inherited socket, bound to the address."),
    ],
)

store = click.Command(
    "store",
    callback=Body("mcp_celery.cli.store:store"),
    help="""Run the private store until it is told to stop.

    Other terminals use it with the `export` line that is printed.
    """,
    params=[DATA_DIR],
)

COMMANDS: Final = (call, demo, dev, keygen, serve, store, task)
