"""The commands as they are typed: names, arguments, options and help. What they do is imported when they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from mcp_celery.cli.arguments import JSONCommand, split_pairs
from mcp_celery.cli.body import Body
from mcp_celery.cli.clients.known import KNOWN
from mcp_celery.cli.operate.commands import OPERATE
from mcp_celery.cli.options import (
    ACCESS_LOG,
    ALLOWED_HOST,
    ALLOWED_ORIGIN,
    APP_DIR,
    CONCURRENCY,
    DATA_DIR,
    FORWARDED_ALLOW_IPS,
    HEADER,
    HOST,
    HTTP,
    LOG_CONFIG,
    MACHINE,
    POOL,
    PORT,
    ROOT_PATH,
    SERVER,
    TASK_ID,
    TIMEOUT,
    UDS,
    URL,
    json_option,
)

STATUS_HELP: Final = (
    "Exit status: 0 completed; 1 failed; 2 wrong command line; 3 cancelled; 4 no such task; 5 the server cannot be "
    "reached; 6 the task continues; 130 interrupted before there was a task; 143 ended by SIGTERM."
)


def _pairs(_context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    return split_pairs(values, option=parameter.opts[0])


call = JSONCommand(
    "call",
    callback=Body("mcp_celery.cli.remote.call:call"),
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
            help="One argument of the tool.",
        ),
        json_option("All arguments as JSON. By itself: print JSON, for machines."),
        click.Option(
            ["--task/--no-task"],
            default=True,
            help="Let the server decide whether the call becomes a task. The default.",
        ),
        click.Option(
            ["--detach"], is_flag=True, help="Print the task's id and leave the task running, without waiting for it."
        ),
        TIMEOUT,
    ],
)

tools = click.Command(
    "tools",
    callback=Body("mcp_celery.cli.remote.tools:tools"),
    help="""List the tools of the MCP server at URL: name, arguments, description, and whether it runs as a task.

    With --json each tool is a line.
    """,
    params=[URL, HEADER, MACHINE],
)

get = click.Command(
    "get",
    callback=Body("mcp_celery.cli.remote.task:get"),
    help="Print how the task TASK_ID stands, and its result where it has one.",
    epilog=STATUS_HELP,
    params=[URL, HEADER, TASK_ID, MACHINE],
)

watch = click.Command(
    "watch",
    callback=Body("mcp_celery.cli.remote.task:watch"),
    help="""Follow the task TASK_ID to its end, answer its questions at the prompt, and print its result.

    With --json each change is a line.
    """,
    epilog=STATUS_HELP,
    params=[URL, HEADER, TASK_ID, MACHINE, TIMEOUT],
)

cancel = click.Command(
    "cancel",
    callback=Body("mcp_celery.cli.remote.task:cancel"),
    help="Ask the server to cancel the task TASK_ID, and print how it stands then.",
    epilog="Exit status: 0 the server took it, or the task had ended; else as for `task get`.",
    params=[URL, HEADER, TASK_ID, MACHINE],
)

answer = JSONCommand(
    "answer",
    callback=Body("mcp_celery.cli.remote.task:answer"),
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
    help="Watch, answer or cancel a task of an MCP server, by the id that `call --detach` prints.",
    commands=[get, watch, cancel, answer],
)

client_config = click.Command(
    "client-config",
    callback=Body("mcp_celery.cli.clients.client_config:client_config"),
    help="""Print the entry by which a desktop client finds SERVER, or write it into the client's file.

    Without --client the entries of all known clients are printed. The client starts the server on stdio; with --http it
    connects to one that runs already, and SERVER may be left out where --name is given.
    """,
    params=[
        click.Argument(["server"], metavar="[MODULE[:ATTR]|FILE.py[:ATTR]]", required=False),
        click.Option(["--client"], type=click.Choice(list(KNOWN)), help="Which client."),
        HTTP,
        click.Option(["--name"], help="By which the client calls the server. Default: the server's own name."),
        click.Option(
            ["--env"],
            multiple=True,
            callback=_pairs,
            metavar="NAME=VALUE",
            help="A variable that the client sets when it starts the server; may be repeated. It is written as it is.",
        ),
        APP_DIR,
        click.Option(["--write"], is_flag=True, help="Show the change to the client's file, ask, and write it."),
        click.Option(
            ["--file"],
            type=click.Path(dir_okay=False, path_type=Path),
            help="The client's file. Default: the current folder's project; of Claude Desktop, the user's.",
        ),
        click.Option(["--yes"], is_flag=True, help="Write without asking."),
    ],
)

demo = click.Command(
    "demo",
    callback=Body("mcp_celery.cli.dev.demo:demo"),
    help="""Watch a tool call run as a Celery job, its progress and its result pushed to the client. Another asks a
    question.

    The tools work on the current folder, or on a sample where it is empty or large. The demo starts a server, a worker
    and a private store (unless MCP_CELERY_REDIS_URL names one), and ends them all.
    """,
)

dev = click.Command(
    "dev",
    callback=Body("mcp_celery.cli.dev.dev:dev"),
    help="""Run SERVER with all it needs: a store, a Celery worker, and the MCP server over HTTP.

    SERVER is `module:attribute` or `path/to/file.py:attribute`; a module with exactly one server needs no attribute.
    The store is a private one, unless MCP_CELERY_REDIS_URL names another. Ctrl-C stops
    everything: running jobs have five seconds to finish, a second Ctrl-C stops them sooner.
    """,
    params=[
        SERVER,
        APP_DIR,
        HOST,
        PORT,
        ALLOWED_HOST,
        ALLOWED_ORIGIN,
        DATA_DIR,
        POOL,
        CONCURRENCY,
        click.Option(["--flower"], is_flag=True, help="Start Flower, too, which shows the jobs in a browser."),
        click.Option(
            ["--reload"],
            is_flag=True,
            help="Start the worker and the server again when a Python file of --app-dir or of SERVER's folder changes. "
            "Running jobs have five seconds to finish. Needs the extra `reload`.",
        ),
        click.Option(["--verbose"], is_flag=True, help="Show every line of every process, not only those of tasks."),
    ],
)

init = click.Command(
    "init",
    callback=Body("mcp_celery.cli.init:init"),
    help="""Write a project to start from into FOLDER, the current one by default: a server, a Procfile, settings.

    Where a file is there already that says something else, the command names it, and writes nothing.
    """,
    params=[
        click.Argument(["folder"], type=click.Path(file_okay=False, path_type=Path), default=Path()),
        click.Option(
            ["--existing-app"], is_flag=True, help="Write a server for a Celery app that exists, and a small such app."
        ),
        click.Option(
            ["-A", "--app"],
            metavar="MODULE[:ATTR]",
            help="Your Celery app, as `celery -A` takes it, in the place of the small one; means --existing-app.",
        ),
        click.Option(["--force"], is_flag=True, help="Overwrite existing files."),
    ],
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

    SERVER is `module:attribute` or `path/to/file.py:attribute`; a module with exactly one server needs no attribute.
    HTTP clients connect to /mcp. On stdio, standard output carries the protocol alone. A password that the store or the
    broker refuses ends the command with exit status 1.
    """,
    params=[
        SERVER,
        APP_DIR,
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
        UDS,
        ROOT_PATH,
        FORWARDED_ALLOW_IPS,
        click.Option(
            ["--stateless"],
            is_flag=True,
            help="Serve each request of revision 2025-11-25 by itself, without a session, so that any process can "
            "serve it. These clients then get no push and no questions, and cannot list their tasks.",
        ),
        click.Option(
            ["--workers"],
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Server processes that share the address. More than one need --stateless.",
        ),
        click.Option(
            ["--wait"],
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            help="Wait at most this long for the store and the broker at the start, then exit with status 1. Default: "
            "start without them, and log when they are lost and when they answer again.",
        ),
        ACCESS_LOG,
        LOG_CONFIG,
        click.Option(["--fd"], type=click.IntRange(min=3), hidden=True, help="Inherited socket, bound to the address."),
        click.Option(["--health-fd"], type=click.IntRange(min=3), hidden=True, help="Inherited socket, for probes."),
        click.Option(["--child"], is_flag=True, hidden=True, help="One of several processes; its parent has checked."),
    ],
)

store = click.Command(
    "store",
    callback=Body("mcp_celery.cli.dev.store:store"),
    help="""Run the private store until it gets a signal to stop.

    Other terminals use it with the `export` line that is printed.
    """,
    params=[DATA_DIR],
)

COMMANDS: Final = (call, client_config, demo, dev, init, keygen, serve, store, task, tools, *OPERATE)
