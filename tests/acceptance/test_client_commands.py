"""`mcp-celery call` and `mcp-celery task` as they are typed, piped and interrupted."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from click.testing import CliRunner

from mcp_celery.cli.main import cli
from tests.support.deployment import Deployment, answering_url, deployed, process
from tests.support.misbehaving import MisbehavingServer
from tests.support.programs import Running, forked_command
from tests.support.terminal import Terminal, at_a_terminal

GIVE_UP_SECONDS = 180.0
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}


class Mcp:
    """Runs commands in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str, typed: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*forked_command("mcp_celery"), *arguments],
            input=typed,
            capture_output=True,
            text=True,
            timeout=GIVE_UP_SECONDS,
            cwd=self.folder,
            env=ENVIRONMENT | variables,
            check=False,
        )

    @contextmanager
    def at_a_terminal(self, *arguments: str, forked: bool = True) -> Generator[Terminal]:
        """Run a command at a terminal. One that is not forked is the terminal's own process."""
        program = forked_command("mcp_celery") if forked else (sys.executable, "-m", "mcp_celery")
        with at_a_terminal([*program, *arguments], folder=self.folder, env=ENVIRONMENT) as terminal:
            yield terminal

    def left_running(self, url: str, tool: str, *, shows: str) -> str:
        """Call a tool and leave its task running once something is shown; gives the task's id."""
        with self.at_a_terminal("call", url, tool) as terminal:
            terminal.until(shows)
            terminal.interrupt()
            terminal.until(r"\[w\]ait on\?")
            terminal.type("d\r")
            task_id = terminal.until(r"task watch \S+ (\S+)")[1]
            assert terminal.end() == 6
        return task_id


@pytest.fixture
def mcp(tmp_path: Path) -> Mcp:
    return Mcp(tmp_path)


@pytest.fixture(scope="module")
def deployment(store_url: str) -> Iterator[Deployment]:
    """A worker of one pool: what is typed does not depend on it."""
    with deployed(store_url, f"commands-{os.getpid()}", quiet=True) as found, found.worker("asyncio"):
        yield found


@pytest.fixture(scope="module")
def url(deployment: Deployment) -> str:
    return deployment.serve()


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose tasks ask, paint, fail and hang."""
    log = tmp_path_factory.mktemp("asking") / "server.log"
    argv = [sys.executable, "-m", "tests.support.asking"]
    with process(argv, dict(os.environ), log, quiet=True) as child:
        yield answering_url(log, child)


def test_a_call_shows_its_progress_and_prints_its_result(mcp: Mcp, url: str) -> None:
    done = mcp("call", url, "counting", "--arg", "steps=3")
    assert (done.returncode, done.stdout) == (0, "counted to 3\n")
    assert re.search(r"step (\d) \(\1/3\)", done.stderr)
    assert re.search(r"(?m)^100%  completed", done.stderr)


def test_structured_content_is_a_table(mcp: Mcp, url: str) -> None:
    done = mcp("call", url, "measured", "--json", '{"label": "12", "values": [1, 2]}')
    assert re.search(r"│ label\s+│ 12\s+│", done.stdout), done.stdout + done.stderr
    assert re.search(r"│ values\s+│ \[1, 2\]\s+│", done.stdout)
    assert "{" not in done.stdout, "the text says the same"


def test_a_text_stays_a_text(mcp: Mcp, url: str) -> None:
    done = mcp("call", url, "measured", "--arg", "label=12", "--arg", "values=[3]")
    assert re.search(r"│ label\s+│ 12\s+│", done.stdout), done.stdout + done.stderr


def test_characters_that_the_terminals_encoding_lacks_are_escaped(url: str) -> None:
    command = [sys.executable, "-m", "mcp_celery", "call", url, "repeated", "--arg", "text=жö", "--arg", "times=1"]
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, timeout=GIVE_UP_SECONDS, env=env, check=False)
    assert (done.returncode, done.stdout) == (0, b"\\u0436\xf6\n"), done.stderr


def test_no_task_calls_a_tool_without_a_task(mcp: Mcp, url: str) -> None:
    done = mcp("call", "--no-task", url, "counting", "--arg", "steps=2", "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0
    assert "taskId" not in told
    assert told["result"]["content"] == [{"type": "text", "text": "counted to 2"}]
    refused = mcp("call", "--no-task", url, "failing_job")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: ")


def test_a_tool_without_tasks_is_called_plainly(mcp: Mcp, url: str) -> None:
    done = mcp("call", url, "greet", "--arg", "name=Ada")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello, Ada!\n", "")


def test_json_prints_the_task_and_its_result_for_machines(mcp: Mcp, url: str) -> None:
    done = mcp("call", "--json", url, "counting", "--json", '{"steps": 1}')
    told = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert told["status"] == "completed"
    got = mcp("task", "get", url, told["taskId"], "--json")
    assert json.loads(got.stdout)["result"] == told["result"]
    watched = mcp("task", "watch", url, told["taskId"], "--json")
    assert [json.loads(line)["status"] for line in watched.stdout.splitlines()] == ["completed"]


def test_headers_reach_the_server(mcp: Mcp, deployment: Deployment) -> None:
    guarded = deployment.serve("guarded")
    assert mcp("call", guarded, "greet", "--arg", "name=Ada").returncode != 0
    done = mcp("call", guarded, "greet", "--arg", "name=Ada", "-H", "Authorization: Bearer alice")
    assert done.stdout == "Hello, Ada!\n", done.stderr


def test_headers_need_not_stand_in_the_process_list(mcp: Mcp, deployment: Deployment) -> None:
    guarded = deployment.serve("guarded")
    greet = ("call", guarded, "greet", "--arg", "name=Ada")
    secret = mcp.folder / "headers"
    secret.write_text("X-Other: 1\r\n\nAuthorization: Bearer alice\n")
    assert mcp(*greet, "-H", "@headers").stdout == "Hello, Ada!\n"
    by_variable = mcp(*greet, MCP_CELERY_CLIENT_HEADERS="Authorization: Bearer alice")
    assert by_variable.stdout == "Hello, Ada!\n", by_variable.stderr
    overridden = mcp(*greet, "-H", "authorization: Bearer wrong", MCP_CELERY_CLIENT_HEADERS=secret.read_text())
    assert overridden.returncode != 0, "what is typed wins over the variable"


def test_the_command_that_continues_a_task_names_the_file_of_headers(mcp: Mcp, asking: str) -> None:
    (mcp.folder / "headers").write_text("X-Secret: hidden")
    with mcp.at_a_terminal("call", asking, "hang", "-H", "@headers", "-H", "X-Too: hidden") as terminal:
        terminal.until("hanging")
        terminal.interrupt()
        terminal.until(r"\[w\]ait on\?")
        terminal.type("d\r")
        found = terminal.until(r"task watch \S+ \S+ (.*)\r\n")
        assert shlex.split(found[1]) == ["--header", "@headers", "--header", "X-Too: …"]
        assert terminal.end() == 6


@pytest.mark.parametrize(
    ("header", "variable", "says"),
    [
        ("@missing", "", "@missing cannot be read: No such file"),
        ("@.", "", "@. cannot be read: Is a directory"),
        ("@headers", "", "@headers, line 2: expected 'NAME: VALUE' in ASCII"),
        ("X: 1", "X: 1\nsecret", "MCP_CELERY_CLIENT_HEADERS, line 2: expected 'NAME: VALUE' in ASCII"),
    ],
)
def test_headers_that_cannot_be_read_are_refused_and_not_printed(
    mcp: Mcp, header: str, variable: str, says: str
) -> None:
    (mcp.folder / "headers").write_text("A: 1\nsecret\n")
    done = mcp("call", "http://127.0.0.1:1/mcp", "x", "-H", header, MCP_CELERY_CLIENT_HEADERS=variable)
    assert done.returncode == 2
    assert says in done.stderr
    assert "secret" not in done.stderr.replace("put secrets", "")


def test_tools_are_listed_with_their_arguments(mcp: Mcp, url: str) -> None:
    host = url.removesuffix("/mcp")
    done = mcp("tools", host)
    assert done.returncode == 0, done.stderr
    assert re.search(r"│ counting +│ yes +│ steps: integer", done.stdout)
    assert re.search(r"│ failing_job +│ only +│", done.stdout)
    assert re.search(r"│ greet +│ no +│ name: string", done.stdout)
    command = shlex.split(done.stdout.partition("Call one: ")[2])
    assert command[1] == "call"
    assert mcp(*command[1:]).returncode == 0, "as it is printed"
    lines = [json.loads(line) for line in mcp("tools", host, "--json").stdout.splitlines()]
    assert {"counting", "failing_job", "greet"} <= {tool["name"] for tool in lines}


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--arg", "steps=x"], 1, "argument `steps`: expected an integer, got 'x'. It takes: steps: integer, pause"),
        (["--arg", "stepz=3"], 2, "argument `stepz`: the tool has no such argument. It takes: steps: integer, pause"),
        (["--json", "{}"], 1, "argument `steps` is missing. It takes: steps: integer, pause: number (optional)"),
    ],
)
def test_an_argument_that_is_wrong_is_named(mcp: Mcp, url: str, arguments: list[str], status: int, says: str) -> None:
    done = mcp("call", url, "counting", *arguments)
    assert done.returncode == status
    assert f"Error: {says}" in done.stderr


def test_a_tool_that_runs_only_as_a_task_says_so(mcp: Mcp, url: str) -> None:
    done = mcp("call", "--no-task", url, "failing_job")
    assert (done.returncode, done.stderr) == (
        1,
        "Error: the tool 'failing_job' runs only as a task: leave out --no-task\n",
    )


def test_what_a_failed_tool_says_is_printed_once(mcp: Mcp, url: str) -> None:
    done = mcp("call", url, "failing_job")
    assert done.returncode == 1
    assert re.search(r"(?m)^100%  failed$", done.stderr)
    assert len(re.findall(r"(?m)^Error: ", done.stderr)) == 1


def test_a_task_is_detached_at_once(mcp: Mcp, asking: str) -> None:
    done = mcp("call", asking, "hang", "--detach")
    assert done.returncode == 0
    task_id = done.stdout.strip()
    assert shlex.split(done.stderr.splitlines()[-1])[1:] == ["task", "watch", asking, task_id]
    assert mcp("task", "cancel", asking, task_id).returncode == 0
    told = json.loads(mcp("call", asking, "hang", "--detach", "--json").stdout)
    assert mcp("task", "cancel", asking, told["taskId"]).returncode == 0


@pytest.mark.slow
def test_a_command_stops_waiting_after_its_timeout(mcp: Mcp, asking: str) -> None:
    done = mcp("call", asking, "hang", "--timeout", "3")
    assert done.returncode == 6
    command = shlex.split(done.stderr.splitlines()[-1])
    assert command[1:4] == ["task", "watch", asking]
    assert mcp(*command[1:], "--timeout", "3").returncode == 6
    assert mcp("task", "cancel", asking, command[4]).returncode == 0


def test_after_sigterm_the_command_prints_how_to_continue_the_task(mcp: Mcp, asking: str) -> None:
    with mcp.at_a_terminal("call", asking, "hang") as terminal:
        task_id = terminal.until(r"Task (\S+)\r\n")[1]
        terminal.until("hanging")
        terminal.terminate()
        terminal.until(rf"task watch \S+ {task_id}")
        assert terminal.end() == 143
    assert mcp("task", "cancel", asking, task_id).returncode == 0


@pytest.mark.slow
def test_a_lost_connection_is_shown_and_ends_when_it_is_back(mcp: Mcp, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    argv = [sys.executable, "-m", "tests.support.asking"]
    with ExitStack() as stack:
        server = stack.enter_context(process(argv, dict(os.environ), log, quiet=True))
        terminal = stack.enter_context(mcp.at_a_terminal("call", answering_url(log, server), "hang"))
        terminal.until("hanging")
        server.send_signal(signal.SIGSTOP)
        try:
            terminal.until(r"connection lost, retrying for [45]:\d\d")
        finally:
            server.send_signal(signal.SIGCONT)
        terminal.until("hanging")
        terminal.interrupt()
        terminal.until(r"\[w\]ait on\?")
        terminal.type("c\r")
        assert terminal.end() == 3


@contextmanager
def hanging(mcp: Mcp, folder: Path) -> Generator[tuple[Running, Terminal, str, str]]:
    """A command that waits for a task: its server, which a test may stop, the terminal, the URL and the task's id."""
    log = folder / "server.log"
    argv = [sys.executable, "-m", "tests.support.asking"]
    with ExitStack() as stack:
        server = stack.enter_context(process(argv, dict(os.environ), log, quiet=True))
        url = answering_url(log, server)
        terminal = stack.enter_context(mcp.at_a_terminal("call", url, "hang"))
        task_id = terminal.until(r"Task (\S+)\r\n")[1]
        terminal.until("hanging")
        yield server, terminal, url, task_id


@pytest.mark.long
def test_a_lost_connection_ends_the_command_with_how_to_continue_the_task(mcp: Mcp, tmp_path: Path) -> None:
    """After five minutes."""
    with hanging(mcp, tmp_path) as (server, terminal, url, task_id):
        server.send_signal(signal.SIGSTOP)
        try:
            for left in ("4:", "2:3", "0:3"):
                terminal.until(f"connection lost, retrying for {left}")
            terminal.until(rf"task watch {url} {task_id}\s")
            assert terminal.end() == 5
        finally:
            server.send_signal(signal.SIGCONT)


def test_a_session_that_ends_with_the_server_ends_the_command_with_how_to_continue_the_task(mcp: Mcp) -> None:
    server = MisbehavingServer("2025-11-25", "", "breaks")
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(server.listening()) as url,
        mcp.at_a_terminal("call", url, "healthy") as terminal,
    ):
        terminal.until("working")
        server.forgets = True
        terminal.until(rf"task watch {url} healthy\s")
        assert terminal.end() == 5
        assert mcp("task", "get", url, "healthy").returncode == 5


def test_a_cancel_that_does_not_reach_the_server_ends_the_command_with_how_to_continue_the_task(
    mcp: Mcp, tmp_path: Path
) -> None:
    with hanging(mcp, tmp_path) as (server, terminal, url, task_id):
        server.kill()
        terminal.until("connection lost")
        terminal.interrupt()
        terminal.until(r"\[w\]ait on\?")
        terminal.type("c\r")
        terminal.until(rf"task watch {url} {task_id}\s")
        terminal.until("cannot be reached")
        assert terminal.end() == 5


def test_a_task_is_left_running_found_and_cancelled(mcp: Mcp, url: str, tmp_path: Path) -> None:
    started = subprocess.Popen(
        [
            *(*forked_command("mcp_celery"), "call", url, "wait_for_file"),
            *("--arg", f"path={tmp_path / 'go'}", "-H", "X-Secret: hidden"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert started.stderr
    assert started.stderr.readline().startswith("Task "), "the id, as soon as there is a task"
    assert "working" in started.stderr.readline()
    started.send_signal(signal.SIGINT)
    _, told = started.communicate(timeout=GIVE_UP_SECONDS)
    assert started.returncode == 6, told
    command = shlex.split(told.splitlines()[-1])
    assert command[1:4] == ["task", "watch", url]
    assert "hidden" not in told
    task_id = command[4]
    got = mcp("task", "get", url, task_id)
    assert (got.returncode, got.stdout) == (6, f"Task {task_id}: working\n")
    (tmp_path / "go").touch()
    assert mcp(*command[1:]).returncode == 2, "a value has to be put in its place"
    watched = mcp(*(part.replace("…", "hidden") for part in command[1:]))
    assert (watched.returncode, watched.stdout) == (0, "released\n"), watched.stderr
    assert mcp("task", "cancel", url, task_id).stdout == "released\n", "it had ended before"


def test_a_task_is_cancelled_by_its_id(mcp: Mcp, asking: str) -> None:
    task_id = mcp.left_running(asking, "hang", shows="hanging")
    with mcp.at_a_terminal("task", "watch", asking, task_id) as terminal:
        terminal.until("hanging")
        cancelled = mcp("task", "cancel", asking, task_id)
        assert cancelled.returncode == 0
        assert cancelled.stderr == f"Task {task_id}: cancelled: by request\n"
        assert terminal.end() == 3
    assert mcp("task", "get", asking, task_id).returncode == 3
    assert mcp("task", "watch", asking, task_id).returncode == 3


def test_ctrl_c_offers_to_wait_on_or_to_cancel(mcp: Mcp, asking: str) -> None:
    with mcp.at_a_terminal("call", asking, "hang") as terminal:
        for answer in ("w", "c"):
            terminal.until("hanging")
            terminal.interrupt()
            terminal.until(r"\[w\]ait on\?")
            terminal.type(f"{answer}\r")
        terminal.until(r"Task \S+ cancelled: by request")
        assert terminal.end() == 3


def test_a_second_ctrl_c_leaves_the_task_running(mcp: Mcp, asking: str) -> None:
    with mcp.at_a_terminal("call", asking, "hang") as terminal:
        terminal.until("hanging")
        terminal.interrupt()
        terminal.until(r"\[w\]ait on\?")
        terminal.interrupt()
        terminal.until("The task continues")
        assert terminal.end() == 6


def test_a_question_is_asked_at_the_terminal(mcp: Mcp, asking: str) -> None:
    with mcp.at_a_terminal("call", asking, "ask") as terminal:
        terminal.until("Who are you")
        terminal.until("Your name: ")
        terminal.interrupt()
        terminal.until(r"\[w\]ait on\?")
        terminal.type("w\r")
        terminal.until("Your name: ")
        terminal.type("A\r")
        terminal.until("is too short")
        terminal.type("Ada\r")
        terminal.until(r"age \(36\): ")
        terminal.type("\r")
        terminal.until("What you like best.")
        terminal.until(r"colour \[red, green\]: ")
        terminal.type("blue\r")
        terminal.until("is not one of")
        terminal.type("red\r")
        terminal.until(r"news \[y, n\]: ")
        terminal.type("maybe\r")
        terminal.until("please answer y or n")
        terminal.type("y\r")
        terminal.until(r"topics \[art, sport\], separated by commas: ")
        terminal.type("art, sport\r")
        terminal.until(
            r"accept: \{'name': 'Ada', 'age': 36, 'colour': 'red', 'news': True, 'topics': \['art', 'sport'\]\}"
        )
        assert terminal.end() == 0


@pytest.mark.parametrize(
    ("typed", "printed"),
    [
        ("Ada\n\nred\nn\n\n", "accept: {'name': 'Ada', 'age': 36, 'colour': 'red', 'news': False}\n"),
        ("Ada\n/decline\n", "decline: None\n"),
        ("/cancel\n", "cancel: None\n"),
        ("Ada\n", "cancel: None\n"),
        ("", "cancel: None\n"),
    ],
)
def test_answers_may_be_piped_in(mcp: Mcp, asking: str, typed: str, printed: str) -> None:
    done = mcp("call", asking, "ask", typed=typed)
    assert (done.returncode, done.stdout) == (0, printed), done.stderr


@pytest.mark.parametrize(("typed", "printed"), [("y\n", "accept\n"), ("n\n", "decline\n")])
def test_a_question_in_url_mode_shows_the_page_to_visit(mcp: Mcp, asking: str, typed: str, printed: str) -> None:
    done = mcp("call", asking, "visit", typed=typed)
    assert done.stdout == printed
    assert "https://login.example/" in done.stderr


@pytest.mark.slow
def test_a_question_is_answered_from_another_terminal(mcp: Mcp, asking: str) -> None:
    task_id = mcp.left_running(asking, "ask", shows="Your name: ")
    with mcp.at_a_terminal("task", "watch", asking, task_id) as terminal:
        terminal.until("Your name: ")
        answer = {"person": {"action": "accept", "content": {"name": "Grace"}}}
        answered = mcp("task", "answer", asking, task_id, "--json", json.dumps(answer))
        assert answered.returncode == 0, answered.stderr
        terminal.until("no longer asked")
        terminal.until(r"accept: \{'name': 'Grace'\}")
        assert terminal.end() == 0
    nothing = mcp("task", "answer", asking, task_id)
    assert (nothing.returncode, nothing.stdout) == (1, "accept: {'name': 'Grace'}\n")
    assert f"task {task_id} has no open question" in nothing.stderr


def test_questions_are_answered_at_the_prompt_of_task_answer(mcp: Mcp, asking: str) -> None:
    task_id = mcp.left_running(asking, "visit", shows="Have you opened it")
    answered = mcp("task", "answer", asking, task_id, typed="y\n")
    assert answered.returncode == 0
    assert mcp("task", "watch", asking, task_id).stdout == "accept\n"


def test_a_question_that_a_terminal_cannot_answer_ends_the_call_with_an_error(mcp: Mcp, asking: str) -> None:
    done = mcp("call", asking, "wrong")
    assert done.returncode == 1
    assert "Error: question 'roots' of task" in done.stderr
    task_id = re.search(r"task watch \S+ (\S+)", done.stderr)
    assert task_id
    refused = mcp("task", "answer", asking, task_id[1])
    assert (refused.returncode, refused.stderr) == (
        1,
        "Error: question 'roots' cannot be asked at a terminal; use --json\n",
    )


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ('{"properties": 7}', "it is not a JSON Schema: 7 is not of type 'object'"),
        ('{"properties": {"a": true}}', "its field 'a' is True and not an object"),
    ],
)
def test_a_form_that_cannot_be_shown_is_an_error(mcp: Mcp, asking: str, form: str, says: str) -> None:
    done = mcp("call", asking, "odd", "--json", json.dumps({"text": form}), typed="x\n")
    assert done.returncode == 1
    found = re.search(
        r"^Error: question 'odd' of task (\S+): (the server's form cannot be asked: .*)$", done.stderr, re.MULTILINE
    )
    assert found, done.stderr
    assert found[2] == f"the server's form cannot be asked: {says}"
    answered = mcp("task", "answer", asking, found[1], typed="x\n")
    assert (answered.returncode, answered.stderr.splitlines()[-1]) == (1, f"Error: {found[2]}")


def test_ctrl_c_works_while_an_answer_is_checked(mcp: Mcp, asking: str) -> None:
    with mcp.at_a_terminal("call", asking, "tangle", forked=False) as terminal:
        terminal.until("knot: ")
        terminal.type("x\r")
        terminal.computes(0.3)
        terminal.interrupt()
        terminal.until(r"\[w\]ait on\?")
        terminal.type("w\r")
        terminal.until("knot: ")
        terminal.type("/decline\r")
        terminal.until("decline")
        assert terminal.end() == 0


def test_a_server_chooses_neither_what_files_are_nor_how_many(mcp: Mcp, asking: str) -> None:
    outside = mcp.folder / "outside"
    (mcp.folder / "flood-2.bin").symlink_to(outside)
    done = mcp("call", asking, "flood")
    assert done.returncode == 0
    names = {path.name for path in mcp.folder.iterdir()}
    assert names == {
        *(f"flood-{number}.bin" for number in range(1, 7)),
        "flood-1.png",
        *(f"flood-{number}.gif" for number in range(1, 95)),
    }
    assert not outside.exists(), "a link is not followed"
    assert not any(path.stat().st_mode & 0o111 for path in mcp.folder.iterdir() if not path.is_symlink())
    assert "Not saved: 56 contents. At most 100 files and 64 MiB of a result are saved" in done.stdout


def test_images_are_saved_and_nothing_is_overwritten(mcp: Mcp, asking: str) -> None:
    (mcp.folder / "paint-2.png").write_text("mine")
    done = mcp("call", asking, "paint")
    assert done.stdout.splitlines() == [
        "Saved paint-1.png",
        "Saved paint-3.png",
        "a link: file:///a",
        "file:///b: saved paint-1.bin",
        "file:///c",
        "read me",
    ]
    assert (mcp.folder / "paint-1.png").read_bytes() == b"\x89PNG not really"
    assert (mcp.folder / "paint-2.png").read_text() == "mine"


def test_what_a_server_sends_cannot_move_the_cursor(mcp: Mcp, asking: str) -> None:
    done = mcp("call", asking, "show", "--arg", "text=7")
    assert "\x1b" not in done.stdout + done.stderr
    assert "said {'text': '7'}" in done.stdout
    assert re.search(r"│ Grace\s+│ 1906\s+│ \[b\]x\[/b\]\s+│", done.stdout)
    assert re.search(r"(?m)^ 50%  working  step 1", done.stderr)


def test_json_for_machines_cannot_move_the_cursor_either(mcp: Mcp, asking: str) -> None:
    text = "\x9b31m red \x7f \u202e reversed \u2066 \u200b \U000e0041 é 🎉"
    done = mcp("call", asking, "echo", "--json", json.dumps({"text": text}), "--json")
    assert not re.search("[\x7f-\x9f\u200b\u202e\u2066\U000e0041]", done.stdout)
    assert json.loads(done.stdout)["result"]["content"] == [{"type": "text", "text": text}], "its value is the same"
    assert "é 🎉" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["call", "URL", "fail"], 1, r"Task \S+: failed: the gears are stuck"),
        (["call", "URL", "fail", "--arg", "text=tool"], 1, "Error: the tool gave up"),
        (["call", "URL", "nope"], 1, "the server has no tool 'nope'; it has: work, show"),
        (["call", "URL", "show", "--arg", "text"], 2, "--arg 'text': expected name=value"),
        (["call", "URL", "show", "--json", "{"], 2, "--json: "),
        (["call", "URL", "show", "--json", "{}", "--arg", "text=x"], 2, "use one of them"),
        (["call", "URL", "show", "--json", "{}", "--json", "{}"], 2, "give one object only"),
        (["call", "ftp://x", "show"], 2, "'ftp://x' is not an http:// or https:// URL"),
        (["call", "URL", "show", "--header", "secret"], 2, "expected 'NAME: VALUE' in ASCII"),
        (["call", "http://127.0.0.1:1/mcp", "show"], 5, r"127\.0\.0\.1:1 cannot be reached"),
        (
            ["tools", "URL/elsewhere"],
            1,
            r"/mcp/elsewhere is no MCP endpoint \(404 Not Found\): .* at http://\S+:\d+/mcp",
        ),
        (["task", "get", "URL", "nobody-made-this"], 4, "task nobody-made-this does not exist"),
        (["task", "watch", "URL", "nobody-made-this"], 4, "task nobody-made-this does not exist"),
        (["task", "cancel", "URL", "nobody-made-this"], 4, "task nobody-made-this does not exist"),
        (["task", "answer", "URL", "nobody-made-this"], 4, "task nobody-made-this does not exist"),
    ],
)
def test_each_kind_of_failure_has_its_exit_status(asking: str, arguments: list[str], status: int, says: str) -> None:
    done = CliRunner().invoke(cli, [argument.replace("URL", asking) for argument in arguments])
    assert done.exit_code == status, done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_ctrl_c_ends_a_call_before_there_is_a_task(mcp: Mcp, tmp_path: Path) -> None:
    """A server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/mcp"
        with mcp.at_a_terminal("call", url, "x") as terminal, silent.accept()[0]:
            terminal.interrupt()
            terminal.until("Interrupted")
            assert terminal.end() == 130


def test_the_help_names_the_exit_statuses() -> None:
    for command in (["call"], ["task", "get"], ["task", "watch"]):
        done = CliRunner().invoke(cli, [*command, "--help"])
        assert "6 the task continues" in " ".join(done.stdout.split())
