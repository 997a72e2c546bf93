"""Commands as they are declared: each has the body that it names, and what prints no result imports no body."""

from __future__ import annotations

import builtins
import inspect
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence

import click
import pytest
from click.testing import CliRunner

from mcp_celery.cli.body import Body
from mcp_celery.cli.commands import serve, watch
from mcp_celery.cli.headers import Headers
from mcp_celery.cli.main import cli
from mcp_celery.cli.processes import same_command
from mcp_celery.cli.remote.connection import Remote
from mcp_celery.engine.ids import new_task_id

HEAVY = frozenset({"mcp", "mcp_types", "celery", "kombu", "redis", "pydantic", "uvicorn", "rich", "httpx2", "asyncio"})

SERVER_SIDE = frozenset({"celery", "kombu", "redis", "mcp_celery.server", "mcp_celery.worker", "mcp_celery.embedded"})
CLIENT_SIDE = frozenset({"mcp_celery.client", "mcp_celery.cli.remote.connection", "rich"})

LOADED_BY_EACH = """
import contextlib, io, json, sys
from mcp_celery.cli.main import cli

loaded = {}
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            cli(line, prog_name="mcp-celery")
        except SystemExit as end:
            loaded[" ".join(line)] = [end.code, sorted(sys.modules)]
json.dump(loaded, sys.stdout)
"""
"""Modules stay loaded, so what one command line has loaded is found for those after it, too."""


def all_commands(group: click.Group) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (name,), command
        if isinstance(command, click.Group):
            yield from (((name, *path), one) for path, one in all_commands(command))


COMMANDS = dict(all_commands(cli))
BODIES = {path: command for path, command in COMMANDS.items() if not isinstance(command, click.Group)}


def loaded_by(*lines: list[str]) -> dict[str, tuple[int, frozenset[str]]]:
    """The exit status of command lines, which one process runs, and what it then has loaded."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED_BY_EACH, json.dumps(lines)], capture_output=True, text=True, check=True
    )
    return {line: (status, frozenset(names)) for line, (status, names) in json.loads(done.stdout).items()}


def test_the_command_line_has_exactly_these_commands() -> None:
    assert {" ".join(path) for path in COMMANDS} == {
        "call",
        "client-config",
        "demo",
        "dev",
        "init",
        "keygen",
        "serve",
        "store",
        "task",
        "task get",
        "task watch",
        "task cancel",
        "task answer",
        "tasks",
        "tasks list",
        "tasks show",
        "tasks cancel",
        "tasks requeue",
        "tasks purge",
        "workers",
        "workers drain",
        "doctor",
        "tools",
    }


@pytest.mark.parametrize("path", BODIES, ids=" ".join)
def test_each_command_has_a_body_with_its_parameters(path: tuple[str, ...]) -> None:
    """Click passes each parameter by its name, and a body has a default for none: it is declared, and shown in help."""
    command = BODIES[path]
    assert isinstance(command.callback, Body)
    body = command.callback.load()
    name = path[-1].replace("-", "_")
    assert command.callback.name == f"{body.__module__}:{name}{'_' if name in vars(builtins) else ''}"
    taken = inspect.signature(body).parameters.values()
    assert {one.name for one in taken} == {one.name for one in command.params}
    assert all(one.default is inspect.Parameter.empty for one in taken)


def parsed(command: click.Command, line: Sequence[str]) -> click.Context:
    """What ``mcp-celery COMMAND LINE`` makes of its arguments.

    A command takes the names of its help option from its parent, and click keeps them: a command that was parsed by
    itself would lose ``-h`` for all tests that follow.
    """
    return command.make_context(command.name, [*line], parent=click.Context(cli, **cli.context_settings))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_each_help_fits_a_terminal(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, [*path, "--help"], terminal_width=80)
    assert [line for line in done.output.splitlines() if len(line) > 80] == []
    assert all(one.help for one in COMMANDS[path].params if isinstance(one, click.Option))


def test_a_command_is_run_again_with_the_same_parameters() -> None:
    line = ["reports:server", "--uds", "a.sock", "--allowed-host", "x.example", "--allowed-host", "y.example"]
    line += ["--stateless", "--workers", "3", "--wait", "2.5", "--root-path", "/tools/"]
    context = parsed(serve, line)
    argv = same_command(context, workers=1, uds=None, fd=7, child=True)
    assert argv[:4] == [sys.executable, "-m", "mcp_celery", "serve"]
    again = parsed(serve, argv[4:])
    assert again.params == {**context.params, "workers": 1, "uds": None, "fd": 7, "child": True}


def test_help_version_keys_and_usage_errors_import_no_body() -> None:
    helps = [["--help"], *([*path, "--help"] for path in COMMANDS)]
    wrong = [["no-such-command"], *([*path, "--no-such-option"] for path in COMMANDS)]
    wrong += [
        ["call", "ftp://x", "tool"],
        ["call", "http://x", "tool", "--json", "{"],
        ["serve"],
        ["call"],
        ["task", "answer"],
    ]
    loaded = loaded_by(*helps, *wrong, ["--version"], ["keygen"])
    statuses = [status for status, _ in loaded.values()]
    assert statuses == [0] * len(helps) + [2] * len(wrong) + [0, 0]
    heavy = {line: sorted(names & HEAVY) for line, (_, names) in loaded.items() if names & HEAVY}
    assert heavy == {}


def test_a_client_loads_no_server() -> None:
    """No process listens on this port, so each command fails after it has imported all that it needs."""
    url = "http://127.0.0.1:1/mcp"
    loaded = loaded_by(["call", url, "tool"], ["task", "get", url, "some-id"])
    assert [status for status, _ in loaded.values()] == [5, 5]
    names = loaded[f"task get {url} some-id"][1]
    assert "mcp_celery.client" in names
    assert names & SERVER_SIDE == set()


def test_a_server_loads_no_client() -> None:
    ((status, names),) = loaded_by(["serve", "no_such_module:server"]).values()
    assert status == 2
    assert "mcp_celery.server" in names
    assert names & CLIENT_SIDE == set()


@pytest.mark.parametrize(
    ("task_id", "command"),
    [
        ("abc", "task watch http://x/mcp abc -H 'A: b'"),
        ("-Xabc", "task watch -H 'A: b' -- http://x/mcp -Xabc"),
    ],
)
def test_the_command_to_go_on_takes_ids_that_begin_with_a_hyphen(task_id: str, command: str) -> None:
    remote = Remote(url="http://x/mcp", headers=Headers({"A": "secret"}, ("-H", "A: b")), machine=False)
    typed = remote.resume_command(task_id)
    assert typed.endswith(command)
    words = shlex.split(typed)
    parameters = parsed(watch, words[words.index("watch") + 1 :]).params
    assert (parameters["url"], parameters["task_id"]) == ("http://x/mcp", task_id)


def test_no_id_of_ours_begins_with_a_hyphen() -> None:
    assert all(new_task_id()[0].isalnum() for _ in range(2_000))
