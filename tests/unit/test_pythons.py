"""Which interpreters `make test-pythons` takes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tests import pythons
from tests.pythons import Interpreter, newest, pyenv_folders

SUPPORTED = SpecifierSet(">=3.11")


def listed(version: str, *, implementation: str = "cpython", variant: str = "default") -> dict[str, str]:
    return {"version": version, "path": f"/opt/{version}", "implementation": implementation, "variant": variant}


def test_the_newest_release_of_each_minor_version_is_taken() -> None:
    found = newest(map(listed, ["3.12.1", "3.11.9", "3.12.10", "3.11.15", "3.12.9", "3.10.13"]), SUPPORTED)
    assert found == [
        Interpreter(Version("3.11.15"), Path("/opt/3.11.15")),
        Interpreter(Version("3.12.10"), Path("/opt/3.12.10")),
    ]
    assert [one.minor for one in found] == ["3.11", "3.12"]


def test_pre_releases_free_threaded_builds_and_other_implementations_are_left_out() -> None:
    others = [
        listed("3.15.0a3"),
        listed("3.14.0rc1"),
        listed("3.14.2", variant="freethreaded"),
        listed("3.11.13", implementation="pypy"),
    ]
    assert newest(others, SUPPORTED) == []


def test_interpreters_of_pyenv_are_found_in_its_folder(tmp_path: Path) -> None:
    folders = [tmp_path / "versions" / name / "bin" for name in ("3.11.7", "3.13.0")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert pyenv_folders({"PYENV_ROOT": str(tmp_path)}) == folders


def test_a_machine_without_one_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(pythons, "find", list[Interpreter])
    assert pythons.main() == 1
    assert "no CPython" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["the environment", "the tests", None])
def test_the_run_fails_when_one_interpreter_fails_and_tries_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: str | None
) -> None:
    def set_up(interpreter: Interpreter) -> Path:
        if wrong == "the environment" and interpreter.minor == "3.12":
            raise pythons.SetUpError("no wheel")
        return interpreter.path

    def run(python: Path) -> tuple[bool, str]:
        failed = wrong == "the tests" and python.name == "3.12.1"
        return not failed, "1 failed" if failed else "3 passed"

    monkeypatch.setattr(pythons, "find", lambda: newest(map(listed, ["3.11.7", "3.12.1", "3.13.0"]), SUPPORTED))
    monkeypatch.setattr(pythons, "set_up", set_up)
    monkeypatch.setattr(pythons, "run_tests", run)
    assert pythons.main() == (wrong is not None)
    ends = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CPython")]
    assert ["FAILED" in line for line in ends] == [False, wrong is not None, False]


def test_an_environment_is_made_again_when_what_it_is_made_of_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs: list[str] = []

    def uv(*arguments: str, **_: str) -> str:
        runs.append(arguments[0])
        if arguments[0] == "venv":
            Path(arguments[-1]).mkdir(parents=True, exist_ok=True)
        return ""

    monkeypatch.setattr(pythons, "uv", uv)
    monkeypatch.setattr(pythons, "ROOT", tmp_path)
    for name, file in {"PLACE": "build", "PINS": "constraints.txt", "PROJECT": "pyproject.toml"}.items():
        monkeypatch.setattr(pythons, name, tmp_path / file)
    pythons.PINS.write_text("redis==8")
    pythons.PROJECT.write_text("[project]")
    made = ["venv", "pip", "pip"]
    here, elsewhere = (Interpreter(Version("3.12.1"), Path(path)) for path in ("/opt/a", "/opt/b"))

    assert pythons.set_up(here) == tmp_path / "build" / "python-3.12" / "bin" / "python"
    assert runs == made
    pythons.set_up(here)
    assert runs == made
    pythons.set_up(elsewhere)
    assert runs == made * 2
    for changed in (pythons.PINS, pythons.PROJECT):
        runs.clear()
        changed.write_text("other")
        pythons.set_up(elsewhere)
        assert runs == made


def test_a_run_leaves_out_the_minor_version_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    this = ".".join(map(str, sys.version_info[:3]))
    tried: list[Path] = []

    def set_up(interpreter: Interpreter) -> Path:
        return interpreter.path

    def run(python: Path) -> tuple[bool, str]:
        tried.append(python)
        return True, "3 passed"

    monkeypatch.setattr(pythons, "find", lambda: newest(map(listed, [this, "3.99.1"]), SUPPORTED))
    monkeypatch.setattr(pythons, "set_up", set_up)
    monkeypatch.setattr(pythons, "run_tests", run)
    assert pythons.main(["--others"]) == 0
    assert tried == [Path("/opt/3.99.1")]
