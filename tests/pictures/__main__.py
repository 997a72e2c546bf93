"""Take the pictures: run the commands of the README's first pages at a terminal of 80 columns and 24 rows.

``python -m tests.pictures`` writes ``docs/img/dev.svg``, ``call.svg`` and ``demo.svg``. Port 8000 has to be free, and
there must be no folder ``reports`` among the temporary files, because its path is in a picture.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyte

from tests.pictures.svg import svg_of
from tests.support.terminal import Terminal, at_a_terminal

ROOT: Final = Path(__file__).resolve().parents[2]
IMAGES: Final = ROOT / "docs" / "img"
COLUMNS: Final = 80
ROWS: Final = 24
URL: Final = "http://127.0.0.1:8000"


class Session:
    """A terminal at which one command after the other is typed.

    Args:
        folder: Where they work.
    """

    def __init__(self, folder: Path) -> None:
        self.screen = pyte.Screen(COLUMNS, ROWS)
        self._folder = folder
        programs = str(Path(sys.executable).parent)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MCP_CELERY_")}
        self._env = kept | {"TERM": "xterm-256color", "PATH": os.pathsep.join((programs, kept.get("PATH", "")))}
        for unwanted in ("NO_COLOR", "COLUMNS", "LINES"):
            self._env.pop(unwanted, None)

    @contextmanager
    def types(self, command: str) -> Generator[Terminal]:
        """Run a command line, which the screen shows behind a prompt."""
        stream = pyte.Stream(self.screen)
        stream.feed(f"\x1b[1m$ {command}\x1b[0m\r\n")
        with at_a_terminal(
            command.split(), folder=self._folder, env=self._env, columns=COLUMNS, rows=ROWS, screen=self.screen
        ) as terminal:
            yield terminal

    def keep(self, name: str, title: str) -> None:
        """Write the picture of the screen."""
        # A Windows checkout must not differ either.
        (IMAGES / f"{name}.svg").write_text(svg_of(self.screen, name=name, title=title), encoding="utf-8", newline="\n")


def take_dev_and_call(folder: Path) -> None:
    """A server, and a call of it from another terminal."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code, "README.md begins with a server"
    (folder / "reports.py").write_text(code[1], encoding="utf-8")
    server, client = Session(folder), Session(folder)
    with server.types("mcp-celery dev reports.py --data-dir store --flower") as dev:
        dev.until(r"call +mcp-celery call \S+ build_report")
        with client.types(f"mcp-celery tools {URL}") as tools:
            assert tools.end() == 0
        with client.types(f"mcp-celery call {URL} build_report --arg year=2026") as call:
            assert call.end() == 0
        client.keep("call", "mcp-celery call")
        dev.until(r"build_report  task \S+ completed after")
        server.keep("dev", "mcp-celery dev")
        dev.interrupt()
        assert dev.end() == 0


def take_demo(folder: Path) -> None:
    """The demo in an empty folder; its question is answered with the default."""
    session = Session(folder)
    with session.types("mcp-celery demo") as demo:
        demo.until(r'\("\*\.md"\): ')
        demo.type("\r")
        assert demo.end() == 0
    session.keep("demo", "mcp-celery demo")


def main() -> None:
    """Take all pictures."""
    for take in (take_dev_and_call, take_demo):
        folder = Path(tempfile.gettempdir(), "reports")
        folder.mkdir(mode=0o700)
        try:
            take(folder)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
