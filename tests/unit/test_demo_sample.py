"""Which folder the demo indexes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_celery.cli.dev import demo
from mcp_celery.cli.dev.demo import DELAY_MS, Subject
from mcp_celery.cli.dev.sample import SAMPLE_FILES
from mcp_celery.demo.folder_index import MAX_FILES, list_files


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def test_a_folder_with_files_is_indexed_itself(here: Path) -> None:
    (here / "a.txt").write_text("one\n")
    chosen = Subject.choose(here, here.parent / "sample")
    assert (chosen.folder, chosen.files, chosen.why_not_here) == (here, 1, "")
    assert not (here.parent / "sample").exists()


def test_of_an_empty_folder_a_sample_is_indexed(here: Path) -> None:
    (here / ".git").mkdir()
    (here / ".git" / "HEAD").touch()
    chosen = Subject.choose(here, here.parent / "sample")
    assert len(list_files(chosen.folder)) == chosen.files == SAMPLE_FILES
    assert chosen.why_not_here == "has no file"


@pytest.mark.slow
def test_of_a_folder_that_would_take_minutes_a_sample_is_indexed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "a.txt").write_text("one\n")
    monkeypatch.setattr(demo, "MOST_BYTES", 3)
    assert Subject.choose(here, here.parent / "sample").why_not_here == "holds more than 0 MB"
    for number in range(MAX_FILES):
        (here / str(number)).touch()
    chosen = Subject.choose(here, here.parent / "other")
    assert chosen.why_not_here.startswith(f"holds more than {MAX_FILES} files")


def test_pauses_take_seconds_at_most() -> None:
    assert Subject(Path(), 10).delay_ms == DELAY_MS
    assert Subject(Path(), 1_000).delay_ms == 8
    assert Subject(Path(), MAX_FILES).delay_ms == 0
