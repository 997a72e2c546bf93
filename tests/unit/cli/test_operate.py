"""The operators' commands, as far as no store is needed."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import AsyncGenerator
from typing import Final

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from mcp_celery.broker.consumers import CeleryWorker
from mcp_celery.cli.operate import doctor as doctor_command
from mcp_celery.cli.operate.commands import Duration, mcp
from mcp_celery.cli.operate.workers import print_workers
from mcp_celery.operate.doctor.findings import Finding
from mcp_celery.operate.workers import Worker

_FOREIGN: Final = """
import sys
before = set(sys.modules)
import click
clicks = set(sys.modules)
import mcp_celery.cli.operate.commands
new = {name for name in set(sys.modules) - clicks if name.split('.')[0] not in sys.stdlib_module_names}
print(*sorted(new))
"""


def test_the_module_that_every_celery_command_imports_needs_click_alone() -> None:
    done = subprocess.run([sys.executable, "-c", _FOREIGN], capture_output=True, text=True, check=True, timeout=120)
    assert set(done.stdout.split()) == {
        "mcp_celery",
        "mcp_celery.cli",
        "mcp_celery.cli.body",
        "mcp_celery.cli.operate",
        "mcp_celery.cli.operate.commands",
    }


@pytest.mark.parametrize(("text", "ms"), [("90", 90_000), ("90s", 90_000), ("15m", 900_000), ("7d", 604_800_000)])
def test_a_duration_is_converted_to_milliseconds(text: str, ms: int) -> None:
    assert Duration().convert(text, None, None) == ms


@pytest.mark.parametrize("text", ["", "m", "1w", "-1s", "1.5h"])
def test_a_text_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no time: expected for example"):
        Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("lives", "answers", "components", "state"),
    [
        (True, True, False, "ok"),
        (True, False, True, "no answer"),
        (True, False, False, "ending"),
        (False, True, False, "no heartbeat"),
        (False, False, False, "dead"),
    ],
)
def test_the_state_of_a_worker_says_what_is_known_of_it(
    lives: bool, answers: bool, components: bool, state: str
) -> None:
    celery = CeleryWorker("worker@host", ()) if answers else None
    taken = (("tool:add", "91486851c1de"),) if components else ()
    assert Worker(node="worker@host", lives=lives, celery=celery, components=taken).state == state


def printed(*names: str, queues: tuple[str, ...] = ("mcp.jobs", "gpu")) -> list[str]:
    """The table of workers on a terminal of 80 columns."""
    out = io.StringIO()
    answers = [CeleryWorker(name, queues, "asyncio", 100, 0) for name in names]
    found = [Worker(node=one.node, lives=True, heartbeat_ms=4_000, oldest_ms=59_000, celery=one) for one in answers]
    print_workers(Console(file=out, width=80), found, components=False, store="the store")
    return out.getvalue().splitlines()


def test_names_of_workers_stay_whole_on_a_narrow_terminal() -> None:
    lines = printed("dev-12998@vm", "worker@reports-web-1")
    assert {"dev-12998@vm", "worker@reports-web-1"} <= {word for line in lines for word in line.split()}
    assert max(map(len, lines)) <= 80


def column(lines: list[str], head: str) -> list[str]:
    """The lines of a column's cells."""
    at = next(at for line in lines for at, cell in enumerate(line.split("┃")) if cell.strip() == head)
    return [line.split("│")[at].strip() for line in lines if line.startswith("│")]


@pytest.mark.parametrize(
    ("worker", "queues"),
    [
        ("celery@vm", ("mcp.reports",)),
        ("celery@reports-worker-12", ("mcp.reports", "gpu")),
        ("celery@" + "x" * 60, ("mcp.yearly-reports", "gpu")),
    ],
)
def test_names_of_queues_stay_whole_on_a_narrow_terminal(worker: str, queues: tuple[str, ...]) -> None:
    lines = printed(worker, queues=queues)
    assert [one.removesuffix(",") for one in column(lines, "queues") if one] == [*queues]
    assert "".join(column(lines, "worker")) == worker
    assert max(map(len, lines)) <= 80


def test_names_for_which_there_is_no_room_are_broken_and_not_cut_off() -> None:
    for worker, queue in (("celery@vm", "q" * 70), ("w" * 24, "q" * 70), ("w" * 70, "q" * 70)):
        lines = printed(worker, queues=(queue,))
        assert ("".join(column(lines, "worker")), "".join(column(lines, "queues"))) == (worker, queue)
        assert max(map(len, lines)) <= 80


def test_a_long_name_of_a_worker_is_broken_and_not_cut_off() -> None:
    name = "celery@ip-10-0-0-1." + "x" * 60
    assert "".join(column(printed(name), "worker")) == name


def test_without_workers_the_store_is_named() -> None:
    assert "the store" in printed()[0]


@pytest.mark.parametrize(
    "line", [["a:server"], ["--server", "a:server"], ["a:server", "--server", "a:server"]], ids=" ".join
)
def test_the_doctor_takes_the_server_as_an_argument_and_as_an_option(
    line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    async def examine(_app: object, server: str | None, *_rest: object) -> AsyncGenerator[Finding]:
        asked.append(server)
        yield Finding("settings", "ok", "fine")

    monkeypatch.setattr(doctor_command, "examine", examine)
    assert CliRunner().invoke(mcp, ["doctor", *line]).exit_code == 0
    assert asked == ["a:server"]


def test_the_doctor_refuses_two_servers() -> None:
    done = CliRunner().invoke(mcp, ["doctor", "a:server", "--server", "b:server"])
    assert done.exit_code == 2
    assert "SERVER is a:server, and --server is b:server: name one of them" in done.output
