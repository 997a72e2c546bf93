"""What `make release-check` refuses, without building anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.version import Version

from tests import release_check
from tests.pythons import Interpreter
from tests.release_check import Distributions, ReleaseError, check_texts, readme_block, run

BUILT = Distributions(Path("a.tar.gz"), Path("a.whl"), "1.2.3")
PYTHONS = [Interpreter(Version(version), Path(f"/opt/{version}")) for version in ("3.11.7", "3.12.1", "3.13.0")]


def test_a_changelog_without_the_version_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(release_check, "ROOT", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 1.2.3\n")
    with pytest.raises(ReleaseError, match=r"begins with 'Unreleased', and pyproject\.toml has version 1\.2\.3"):
        check_texts("1.2.3")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3\n\n### Added\n")
    check_texts("1.2.3")


def test_the_readme_has_the_server_and_the_client_that_are_run() -> None:
    assert "TaskServer(" in readme_block("def build_report")
    assert release_check.DOCUMENTED in readme_block("asyncio.run(main())")


def test_a_command_that_fails_is_shown_with_what_it_printed(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"`sh -c echo no; exit 3` failed:\nno"):
        run("sh", "-c", "echo no; exit 3", folder=tmp_path)


@pytest.mark.parametrize("wrong", [None, "3.12.1"])
def test_one_python_that_fails_fails_it_and_the_others_are_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: str | None
) -> None:
    def check_on(interpreter: Interpreter, _built: Distributions) -> str | None:
        return "the demo fails" if str(interpreter.version) == wrong else None

    def nothing(*_command: object, **_folder: object) -> str:
        return ""

    def build(_version: str) -> Distributions:
        return BUILT

    def find() -> list[Interpreter]:
        return PYTHONS

    for stand_in in (build, find, check_on):
        monkeypatch.setattr(release_check, stand_in.__name__, stand_in)
    for name in ("check_texts", "run"):
        monkeypatch.setattr(release_check, name, nothing)
    assert release_check.main() == (wrong is not None)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CPython")]
    assert ["FAILED" in line for line in lines] == [False, wrong is not None, False]
