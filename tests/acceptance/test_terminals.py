"""The commands at terminals of several sizes and kinds, and where their output is piped: what people see."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.command_line import CommandLine
from tests.support.deployment import answering_url, process
from tests.support.programs import forked_command
from tests.support.terminal import at_a_terminal

SIZES: Final = ((80, 24), (120, 40))
KINDS: Final = ({"TERM": "xterm"}, {"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"})
COLOUR: Final = re.compile(r"\x1b\[[0-9;]*[34][0-7][0-9;]*m")
SERVER: Final = """
from mcp_celery import TaskServer
server = TaskServer("mine")
@server.tool(task=True)
def add_numbers(number: int) -> int: return number
"""


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose tasks fail."""
    log = tmp_path_factory.mktemp("asking") / "server.log"
    with process([sys.executable, "-m", "tests.support.asking"], dict(os.environ), log, quiet=True) as child:
        yield answering_url(log, child)


def environment(**variables: str) -> dict[str, str]:
    """The environment of a command at a terminal: the terminal alone says how wide it is."""
    return {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR"}} | variables


def shown(folder: Path, *arguments: str, size: tuple[int, int], **variables: str) -> tuple[list[str], str]:
    """Run a command at a terminal: the rows of its screen at the end, and all that was written."""
    env = environment(**variables)
    command = [*forked_command("mcp_celery"), *arguments]
    with at_a_terminal(command, folder=folder, env=env, columns=size[0], rows=size[1]) as terminal:
        terminal.end()
    return terminal.rows, terminal.text


@pytest.mark.parametrize(("size", "kind"), [*((SIZES[0], kind) for kind in KINDS), (SIZES[1], KINDS[0])], ids=str)
def test_a_failed_task_is_shown_once(tmp_path: Path, asking: str, size: tuple[int, int], kind: dict[str, str]) -> None:
    call = ("call", asking, "fail", "--arg", "text=tool")
    rows, written = shown(tmp_path, *call, size=size, **kind)
    assert re.fullmatch(r"Task task-\d+", rows[0])
    if kind["TERM"] == "dumb":
        assert rows[-2] == "100%  failed", "a line now and then, not a bar at the end"
    else:
        assert re.fullmatch(r" *failed ━{32} 100% \d:\d\d:\d\d", rows[1])
    assert rows[-1] == "Error: the tool gave up"
    assert written.count("the tool gave up") == 1
    assert bool(COLOUR.search(written)) == (kind == KINDS[0])
    assert "\x1b" not in written or kind["TERM"] != "dumb"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_long_message_is_cut_below_the_bar(tmp_path: Path, asking: str, size: tuple[int, int]) -> None:
    command = [*forked_command("mcp_celery"), "call", asking, "ramble"]
    env = environment(TERM="xterm")
    with at_a_terminal(command, folder=tmp_path, env=env, columns=size[0], rows=size[1]) as terminal:
        terminal.until("sheep")
        terminal.terminate()
        assert terminal.end() == 143
    bar = next(at for at, row in enumerate(terminal.rows) if "50%" in row)
    message = terminal.rows[bar + 1]
    assert message.startswith("  counting sheep counting")
    assert message.endswith("…")
    assert size[0] - 1 <= len(message) <= size[0]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_error_breaks_at_words(tmp_path: Path, asking: str, size: tuple[int, int]) -> None:
    commands = (
        ("call", "http://127.0.0.1:1/mcp", "x"),
        ("call", asking, "show", "--json", "{}", "--arg", "a_long_name_of_an_argument=a_long_value"),
        ("dev", "a/folder/that/does/not/exist/nor/does/the/file/it/would/have.py"),
        ("task", "get", asking, "no-such-task-but-an-identifier-that-is-somewhat-long"),
    )
    for command in commands:
        rows, written = shown(tmp_path, *command, size=size, TERM="xterm")
        lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", written).splitlines()]
        assert rows == lines, "no line was broken by the terminal"


def test_tools_fit_the_terminal(tmp_path: Path, asking: str) -> None:
    for columns, rows in SIZES:
        screen, written = shown(tmp_path, "tools", asking, size=(columns, rows), TERM="dumb")
        assert max(map(len, screen)) <= columns
        assert "\x1b" not in written
        # Where the command is in no folder of PATH its line has a path. The terminal may break it, also at a space.
        assert f"mcp-celery call {asking} work".replace(" ", "") in "".join(screen[-2:]).replace(" ", "")


def test_a_pipe_gets_lines_without_colours(tmp_path: Path, asking: str) -> None:
    line = CommandLine(tmp_path)
    done = line.run("call", asking, "fail", "--arg", "text=tool", TERM="xterm", COLUMNS="40")
    assert done.stderr.splitlines()[-1] == "Error: the tool gave up"
    unreachable = line.run("call", "http://127.0.0.1:1/mcp", "x", COLUMNS="40")
    assert len(unreachable.stderr.splitlines()) == 1
    assert "\x1b" not in done.stdout + done.stderr + unreachable.stderr
    line.close()


def test_the_summary_of_dev_fits_the_terminal(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    line.write("mine.py", SERVER)
    env = {**line.environment, "TERM": "dumb", "MCP_CELERY_REDIS_URL": "memory://", "PATH": path_with_programs()}
    command = [*forked_command("mcp_celery"), "dev", "mine.py", "--port", "0"]
    with at_a_terminal(command, folder=tmp_path, env=env, columns=80, rows=24) as terminal:
        terminal.until("--arg number=1")
        terminal.interrupt()
        assert terminal.end() == 0
    first = next(at for at, row in enumerate(terminal.rows) if "answers at" in row)
    assert [row.split()[0] for row in terminal.rows[first + 1 : first + 5]] == ["tools", "worker", "store", "call"]
    assert terminal.rows[first + 4].endswith("add_numbers --arg number=1"), "the line was not broken"
    assert "\x1b" not in terminal.text
    line.close()


def path_with_programs() -> str:
    """So that the summary names `mcp-celery` without its folder."""
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
