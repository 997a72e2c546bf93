"""The operators' commands as they are typed.

Every call of ``celery`` imports this module (the entry point ``celery.commands``), so it imports click and
what a command is, and nothing else.
"""

from __future__ import annotations

import re
from typing import Any, Final

import click

from mcp_celery.cli.body import Body

STATUSES: Final = (
    *("open", "working", "queued", "received", "running", "input_required"),
    *("completed", "failed", "cancelled"),
)
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION: Final = re.compile(r"(\d{1,9})([smhd]?)")


class _Alone(Body):
    """The body of a group, which runs where no command of the group is named."""

    def __call__(self, **parameters: Any) -> None:
        """Run the group without a subcommand."""
        if click.get_current_context().invoked_subcommand is None:
            super().__call__(**parameters)


class Duration(click.ParamType[int]):
    """A time such as ``90s``, ``15m``, ``2h`` or ``7d``, in ms; a bare number is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        if isinstance(value, int):
            return value
        found = _DURATION.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no time: expected for example 90s, 15m, 2h or 7d", param, ctx)
        return int(found[1]) * _UNITS[found[2] or "s"] * 1000


def _where(*, has_app: bool) -> list[click.Parameter]:
    """Options that select the tasks. Celery's own ``-A`` stands in front of its commands."""
    app = click.Option(
        ["-A", "--app"],
        metavar="MODULE[:ATTR]",
        hidden=not has_app,
        help="Your Celery app, as `celery -A` takes it. Default: the server's, or the one that MCP_CELERY_* configure.",
    )
    return [
        app,
        click.Option(
            ["--server"],
            metavar="MODULE[:ATTR]",
            help="The server. Default: MCP_CELERY_SERVER, or those installed in the app.",
        ),
        click.Option(
            ["--namespace"],
            help="The server's namespace; the server is not imported. Default: the server's, else "
            "MCP_CELERY_NAMESPACE, else every one in the store.",
        ),
    ]


_MACHINE: Final = click.Option(["--json", "machine"], is_flag=True, help="Print JSON, for machines.")
_FULL_IDS: Final = click.Option(
    ["--full-ids"],
    is_flag=True,
    help="Print whole ids. The id of an anonymous task is the right to read it.",
)
_TASK: Final = click.Argument(["task"], metavar="ID")


def _tasks(where: list[click.Parameter]) -> click.Group:
    listing = click.Command(
        "list",
        callback=Body("mcp_celery.cli.operate.tasks:list_"),
        help="""List tasks, the newest first: those that are open, unless --status says otherwise.

        The first characters of an id are enough for the other commands. With --json each task is a line.
        """,
        params=[
            *where,
            click.Option(
                ["--status", "statuses"],
                multiple=True,
                type=click.Choice(["all", *STATUSES]),
                metavar="STATUS",
                help="open (the default), working, input_required, completed, failed, cancelled or all; of a "
                "working task also queued, received by a worker, or running. May be repeated.",
            ),
            click.Option(["--component"], help="Name of the tool or prompt; URI or URI template of the resource."),
            click.Option(["--scope"], help="The caller's scope; '' for anonymous callers."),
            click.Option(["--older-than"], type=Duration(), metavar="TIME", help="Created before: 90s, 15m, 2h, 7d."),
            click.Option(["--worker"], help="Node name of the worker that has the job, or its beginning."),
            click.Option(["--queue"], help="Queue that the jobs go to."),
            click.Option(
                ["--limit"], type=click.IntRange(min=1), default=50, show_default=True, help="Tasks to print at most."
            ),
            click.Option(["--watch"], is_flag=True, help="Print them again every two seconds, until Ctrl-C."),
            _FULL_IDS,
            _MACHINE,
        ],
    )
    show = click.Command(
        "show",
        callback=Body("mcp_celery.cli.operate.tasks:show"),
        help="""Print the life of a task, and what it waits for.

        ID is the task's id, its first characters, its Celery id or its key. The command waits some seconds for
        the workers' answers.
        """,
        params=[
            *where,
            _TASK,
            click.Option(
                ["--show-arguments"],
                is_flag=True,
                help="Print contents too: arguments, messages, errors. They are the caller's.",
            ),
            _FULL_IDS,
            _MACHINE,
        ],
    )
    cancel = click.Command(
        "cancel",
        callback=Body("mcp_celery.cli.operate.tasks:cancel"),
        help="""Cancel a task, as its client could: its record first, then its job.

        ID as for `show`. If the task has already ended, or the broker does not answer and the job may run on, the
        command says so and exits with status 1.
        """,
        params=[*where, _TASK, _MACHINE],
    )
    requeue = click.Command(
        "requeue",
        callback=Body("mcp_celery.cli.operate.tasks:requeue"),
        help="""Publish the job of an open task again, as its next attempt.

        ID as for `show`. What has not started, or may be repeated, is put back at once; a job that has started and may
        have had effects only with --force. If an earlier attempt still runs, its failure is dropped, and its result
        too, unless results are in another result backend than the Redis of the records: there it completes the task.
        """,
        params=[
            *where,
            _TASK,
            click.Option(
                ["--force"], is_flag=True, help="Requeue even if the job has started and may have had effects."
            ),
            _MACHINE,
        ],
    )
    purge = click.Command(
        "purge",
        callback=Body("mcp_celery.cli.operate.tasks:purge"),
        help="""Delete tasks that have ended, with their results, before their time to live is over.

        Open tasks are never deleted. Clients that ask for a deleted task get `Task not found`. Results in another
        result backend than the Redis of the records are deleted soon afterwards, by a server or worker that runs.
        """,
        params=[
            *where,
            click.Option(
                ["--older-than"],
                type=Duration(),
                required=True,
                metavar="TIME",
                help="Ended at least this long ago: 90s, 15m, 2h, 7d.",
            ),
            click.Option(["--yes"], is_flag=True, help="Delete without asking."),
            _MACHINE,
        ],
    )
    return click.Group(
        "tasks",
        help="List tasks, see what each waits for, cancel one, put one back into the queue.",
        commands=[listing, show, cancel, requeue, purge],
    )


def _workers(where: list[click.Parameter]) -> click.Group:
    drain = click.Command(
        "drain",
        callback=Body("mcp_celery.cli.operate.workers:drain"),
        help="""Have WORKER take no more jobs, wait until those that it has are done, and end it.

        WORKER is the node name that `workers` lists. A worker of your own app, too, takes no more of its other jobs.
        """,
        params=[
            *where,
            click.Argument(["worker"]),
            click.Option(
                ["--timeout"],
                type=click.FloatRange(min=0, min_open=True),
                metavar="SECONDS",
                help="Stop waiting after this time, with exit status 1; the worker runs on, and takes no more jobs.",
            ),
        ],
    )
    return click.Group(
        "workers",
        callback=_Alone("mcp_celery.cli.operate.workers:workers"),
        invoke_without_command=True,
        help="""List the workers: pool, slots, queues, oldest job, last heartbeat.

        The command waits some seconds for their answers.

        `no heartbeat`: it consumes the queue, but keeps its tasks in another store. `no answer`: remote control
        does not reach it, as on solo while a job runs. `ending`: it shuts down, and waits for its last jobs. With
        --json each is a line.
        """,
        params=[
            *where,
            click.Option(["--components"], is_flag=True, help="List the components of each, with their versions."),
            _MACHINE,
        ],
        commands=[drain],
    )


def _doctor(where: list[click.Parameter]) -> click.Command:
    _server, *others = [one for one in where if one.name != "app"]
    named = click.Option(["--server", "named"], metavar="MODULE[:ATTR]", help="The same as SERVER.")
    apps = [one for one in where if one.name == "app"]
    return click.Command(
        "doctor",
        callback=Body("mcp_celery.cli.operate.doctor:doctor"),
        help="""Check the deployment of SERVER: settings, store, broker, results, workers.

        Each finding is a line: ok, a warning or an error, with the setting to change. Run it where the server runs, in
        its environment. SERVER is by default MCP_CELERY_SERVER, or what is installed in the app.
        """,
        epilog="Exit status: 0 no errors; 1 errors; 2 wrong command line.",
        params=[
            *apps,
            click.Argument(["server"], metavar="[MODULE[:ATTR]|FILE.py[:ATTR]]", required=False),
            named,
            *others,
            _MACHINE,
        ],
    )


def _all(*, has_app: bool) -> tuple[click.Command, ...]:
    where = _where(has_app=has_app)
    return (_tasks(where), _workers(where), _doctor(where))


OPERATE: Final = _all(has_app=True)
"""The commands of ``mcp-celery``."""

mcp: Final = click.Group(
    "mcp",
    help="Background tasks of MCP servers: list them, explain them, check the deployment.",
    commands=_all(has_app=False),
)
"""The command ``celery mcp``."""
