"""What ``init`` writes, and what it leaves."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mcp_celery.cli.main import cli
from tests.support.programs import ROOT

environ: Any = import_module("honcho.environ")  # which says nothing of its types
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Run]:
    """``init`` in a folder of the test's own, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["init", *arguments])

    yield invoke
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("proj", "other"):
            del sys.modules[name]


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_project_has_the_files_that_the_documentation_names(run: Run, tmp_path: Path) -> None:
    assert run("Sales Reports").exit_code == 0
    written = contents(tmp_path / "Sales Reports")
    shared = {f"config/{path.name}" for path in (ROOT / "config").iterdir() if path.is_file()}
    assert set(written) == {
        *("server.py", "README.md", ".gitignore", "Procfile", "workers/__init__.py", "workers/asgi.py"),
        *shared,
    }
    same = {*shared, "Procfile", "workers/__init__.py"} - {"config/env.example"}
    assert {name: written[name] for name in same} == {name: (ROOT / name).read_text() for name in same}
    assert 'TaskServer("sales-reports")' in written["server.py"]
    assert "mcp.sales-reports" in written["server.py"]
    assert environ.parse(written["config/env.example"]) == {
        "MCP_CELERY_SERVER": "server:server",
        "CELERY_CONFIG_MODULE": "config.celeryconfig",
    }
    assert "from server import server\n" in written["workers/asgi.py"]
    assert len([line for line in written["README.md"].splitlines() if line]) <= 10


@pytest.mark.parametrize("arguments", [(), ("--existing-app",)], ids=["new", "existing"])
def test_nothing_of_the_checkout_is_left_in_it(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert run("mine", *arguments).exit_code == 0
    for name, text in contents(tmp_path / "mine").items():
        assert "workers.demo" not in text, name
        assert "starter" not in text, name
        if name.endswith(".py"):
            ast.parse(text)


def test_a_file_that_is_there_is_named_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("mine")
    (tmp_path / "Procfile").symlink_to("nowhere")
    done = run()
    assert done.exit_code == 2
    assert f"{tmp_path}/server.py, {tmp_path}/Procfile exist already" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Procfile", "server.py"]
    assert run("--force").exit_code == 0
    assert "TaskServer" in (tmp_path / "server.py").read_text()
    assert not (tmp_path / "Procfile").is_symlink()


def test_a_file_that_needs_no_change_is_left(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "__init__.py").write_text("mine = 1\n")
    assert run().exit_code == 0
    (tmp_path / "server.py").unlink()
    again = run()
    assert again.exit_code == 0
    assert "Wrote 1 files" in again.stdout
    assert (tmp_path / "config" / "__init__.py").read_text() == "mine = 1\n"
    assert "has all of these files already" in run().stdout


def test_a_folder_that_is_a_file_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config").touch()
    done = run()
    assert done.exit_code == 1
    assert f"{tmp_path}/config" in done.stderr
    assert run("config").exit_code == 2


APP = "from celery import Celery\n{} = Celery('proj')\n"


@pytest.mark.parametrize(
    ("file", "name", "spec", "line"),
    [
        ("proj.py", "app", "proj", "from proj import app"),
        ("proj.py", "celery", "proj", "from proj import celery as app"),
        ("proj.py", "queue", "proj", "from proj import queue as app"),
        ("proj/celery.py", "app", "proj", "from proj.celery import app"),
        ("proj/celery.py", "queue", "proj.celery:queue", "from proj.celery import queue as app"),
    ],
)
def test_an_app_is_found_as_celery_finds_it(
    run: Run, tmp_path: Path, file: str, name: str, spec: str, line: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(APP.format(name))
    done = run("-A", spec)
    assert done.exit_code == 0, done.output
    written = contents(tmp_path)
    assert f"\n{line}\n" in written["mcp_server.py"]
    assert f"\n{line}\n" in written["mcp_worker.py"]
    assert "shop.py" not in written
    assert environ.parse(written["config/env.example"]) == {}
    procfile = environ.parse_procfile(written["Procfile"]).processes
    assert " -A mcp_worker worker -Q mcp." in procfile["worker"]
    assert " -A mcp_worker flower " in procfile["flower"]


@pytest.mark.parametrize(
    ("text", "spec", "said"),
    [
        ("", "missing", "-A missing: cannot import 'missing': No module named 'missing'"),
        ("", "other", "-A other: there is no Celery app"),
        (APP.format("app"), "other:celery", "-A other:celery: there is no Celery app"),
        ("import nothing_like_it", "other", "cannot import 'other': No module named 'nothing_like_it'"),
        ("raise RuntimeError('not\\ntoday')", "other", "cannot import 'other': RuntimeError: not today"),
    ],
)
def test_a_missing_app_is_an_error_of_one_line(run: Run, tmp_path: Path, text: str, spec: str, said: str) -> None:
    (tmp_path / "other.py").write_text(text)
    done = run("-A", spec)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert said in line
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["other.py"]
