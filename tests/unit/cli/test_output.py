"""What the commands print, on a terminal and elsewhere."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from celery.concurrency import get_implementation
from rich.console import Console

from mcp_celery.cli.dev.dev import export_line
from mcp_celery.cli.dev.inspection import InspectedTool
from mcp_celery.cli.dev.summary import TaskLines, summary
from mcp_celery.cli.options import POOLS
from mcp_celery.cli.output import KEPT_LINES, LogTail, Terminal, at_words, typed
from mcp_celery.cli.remote.render import LANGUAGES_SHOWN, ProgressView, print_index
from mcp_celery.client import TaskState
from mcp_celery.client.wire import Progress
from mcp_celery.default_app import configuration


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class ClosedPipe(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError


def shown_on(stream: io.StringIO) -> str:
    terminal = Terminal(stream)
    terminal("worker", "ready")
    terminal("server", "up")
    return stream.getvalue()


def test_lines_have_the_name_of_their_process_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert shown_on(io.StringIO()) == "worker | ready\nserver | up\n"
    coloured = shown_on(FakeTerminal())
    assert "\x1b[32mworker |\x1b[0m ready\n" in coloured
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert shown_on(FakeTerminal()) == "worker | ready\nserver | up\n"


def test_a_reader_that_has_gone_stops_nothing() -> None:
    Terminal(ClosedPipe())("worker", "ready")


def test_the_last_lines_of_each_process_are_kept() -> None:
    tail = LogTail()
    tail("server", "up")
    for number in range(100):
        tail("worker", str(number))
    lines = tail.text().splitlines()
    assert lines[0] == "server | up"
    assert lines[-1] == "worker | 99"
    assert len(lines) == 1 + KEPT_LINES


def test_an_error_is_wrapped_at_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    text = "cannot reach it: run `pip install 'a b c d e f'` first\nworker | a line of a log, as it was"
    assert at_words(text, io.StringIO()) == text, "where it is piped, it stays a line"
    assert at_words(text, FakeTerminal(), indent=7).split("\n") == [
        "cannot reach",
        "it: run",
        "`pip install 'a b c d e f'`",
        "first",
        "worker | a line of a log, as it was",
    ]


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("status=completed result_bytes=3", "completed after 14 ms"),
        ("status=completed result_bytes=3 tool_error=true", "failed (tool error) after 14 ms"),
        ("status=failed reason=lost", "failed after 14 ms"),
        ("status=cancelled", "cancelled after 14 ms"),
    ],
)
def test_a_task_is_a_line_when_it_is_created_and_when_it_ends(status: str, shown: str) -> None:
    said: list[str] = []
    now = iter((0.0, 0.014))
    lines = TaskLines(lambda _name, line: said.append(line), said.append, clock=lambda: next(now))
    lines("server", 'INFO mcp_celery.audit: event=task.created scope=null task=6x0Tt4pS… type=tool component="fail"')
    lines("worker", f"INFO mcp_celery.audit: event=task.ended scope=null task=6x0Tt4pS… {status}")
    assert [line[10:] for line in said] == ["fail  task 6x0Tt4pS… created", f"fail  task 6x0Tt4pS… {shown}"]


@pytest.mark.parametrize(
    "line",
    [
        "[2026-11-30 17:09:23,123: INFO/MainProcess] celery@vm ready.",
        "time=2026-11-30T17:09:23+0000 level=INFO logger=celery.apps.worker process=7 message=celery@vm ready.",
        '{"level": "INFO", "logger": "celery.apps.worker", "message": "celery@vm ready.", "process": 7}',
    ],
    ids=["celery", "logging.json", "json"],
)
def test_a_worker_is_ready_in_whatever_format_it_logs(line: str) -> None:
    lines = TaskLines(lambda _name, _line: None, lambda _line: None)
    lines("worker", line.replace(" ready.", " is not ready."))
    lines("server", line)
    assert not lines.worker_is_ready.is_set()
    lines("worker", line)
    assert lines.worker_is_ready.is_set()


def test_a_program_is_named_as_it_can_be_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "env" / "bin"
    folder.mkdir(parents=True)
    (folder / "celery").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert typed("celery") == str(folder / "celery")
    monkeypatch.chdir(tmp_path)
    assert typed("celery") == "env/bin/celery"
    assert typed("not-installed") == "not-installed"
    monkeypatch.setenv("PATH", str(folder))
    assert typed("celery") == "celery"


def test_dev_prints_the_settings_of_its_store_for_other_terminals() -> None:
    assert export_line({"A": "b c", "D": "e"}) == "export A='b c' D=e"
    shown = summary(
        server="mine",
        url="http://127.0.0.1:8000/mcp",
        tools=[InspectedTool("plain", False, ()), InspectedTool("add", True, ("a=1", "name=text"))],
        worker="asyncio pool",
        store="private",
        flower="",
        program="mcp-celery",
        exports="export A=b",
    )
    assert "  tools   plain, add (task)" in shown.splitlines()
    assert "  call    mcp-celery call http://127.0.0.1:8000 add --arg a=1 --arg name=text" in shown.splitlines()
    assert shown.splitlines()[-1] == "  export A=b"
    assert "`mcp-celery tasks`" in shown.splitlines()[-2]


def update(status: str, progress: int | None = None, message: str | None = None) -> TaskState:
    meta: dict[str, Any] = {} if progress is None else {"mcp-celery/progress": {"progress": progress, "total": 10}}
    told = {"taskId": "t", "status": status, "statusMessage": message, "_meta": meta, "result": {}}
    return TaskState.model_validate(told)


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    out = io.StringIO()
    with ProgressView(Console(file=out, width=80)) as view:
        view.show(update("working"))
        for done in (2, 1, 2, 3, 9):
            view.show(update("working", done, f"file {done}"))
        view.show(update("completed", 9, "file 10"))
    assert out.getvalue().splitlines() == [
        "  0%  working  ",
        " 20%  working  file 2",
        " 30%  working  file 3",
        " 90%  working  file 9",
        "100%  completed  file 10",
    ]
    assert view.changes == 7


def test_without_a_total_each_message_is_a_line() -> None:
    out = io.StringIO()
    with ProgressView(Console(file=out, width=80)) as view:
        for message in ("cut it", "cut it", "glue it"):
            view.show(update("working", None, message))
        view.show(update("completed"))
    assert out.getvalue().splitlines() == [
        "  0%  working  cut it",
        "  0%  working  glue it",
        "100%  completed  ",
    ]


@pytest.mark.parametrize(("total", "shown"), [(5, "100%"), (1e-308, "100%"), (-1e-320, "  0%")])
def test_progress_beyond_its_total_is_shown_as_its_bounds(total: float, shown: str) -> None:
    told = update("working")
    out = io.StringIO()
    with ProgressView(Console(file=out, width=80)) as view:
        view.show(told.model_copy(update={"progress": Progress(progress=1e308, total=total)}))
    assert out.getvalue() == f"{shown}  working  \n"


def test_on_a_terminal_progress_is_a_bar() -> None:
    out = io.StringIO()
    with ProgressView(Console(file=out, width=80, force_terminal=True)) as view:
        view.show(update("working", 5, "file 5"))
        view.show(update("completed", 10))
    assert "100%" in out.getvalue()
    assert "completed" in out.getvalue()


def test_an_index_is_shown_with_its_rarest_languages_summed_up() -> None:
    languages = [{"language": f"L{one}", "files": 1, "lines": 1000, "bytes": 2} for one in range(LANGUAGES_SHOWN + 2)]
    index = {
        "files": 14,
        "lines": 14_000,
        "bytes": 28,
        "skipped": 3,
        "languages": languages,
        "largest": [{"path": "[bold]odd[/bold]" + "x" * 100, "lines": 1, "bytes": 2}],
        "digest": "d" * 64,
    }
    out = io.StringIO()
    print_index(Console(file=out, width=80), index)
    lines = out.getvalue().splitlines()
    assert any("2 more" in line and "2,000" in line for line in lines)
    assert any(line.endswith("[bold]odd[/bold]" + "x" * 100) for line in lines), "neither wrapped nor markup"
    assert lines[-1] == "Digest of all 14 files: sha256:" + "d" * 64
    with pytest.raises(ValueError, match="digest"):
        print_index(Console(file=out), {**index, "digest": None})


def test_every_pool_is_one_that_celery_knows_and_prefork_is_not_its_default_spelling() -> None:
    chosen = {name: arguments[1] for name, arguments in POOLS.items() if arguments}
    assert {arguments[0] for arguments in POOLS.values() if arguments} == {"--pool"}
    modules = {name: get_implementation(celery_name).__module__ for name, celery_name in chosen.items()}
    expected = {"prefork": "prefork", "threads": "thread", "solo": "solo"}
    assert modules == {name: f"celery.concurrency.{module}" for name, module in expected.items()}
    assert chosen["prefork"] != "prefork", "which Celery cannot tell from nothing said"
    assert configuration()["worker_pool"] == "mcp_celery.asyncio_pool.pool:TaskPool", "what nothing said means"
