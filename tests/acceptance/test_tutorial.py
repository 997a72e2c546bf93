"""The pages of the tutorial, followed word for word in one folder, as a newcomer would in several terminals."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.support.deployment import ROOT, process, wait_until
from tests.support.locks import reserve_port
from tests.support.programs import Running, commands_folder, typed

pytestmark = pytest.mark.slow

PAGES: Final = ROOT / "docs" / "tutorial"
BLOCK: Final = re.compile(r'^```(python|sh|console)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
READY: Final = re.compile(r"(?i)answers at http| ready\.|export MCP_CELERY_REDIS_URL=\S+")
EXPORTED: Final = re.compile(r"export (MCP_CELERY_REDIS_URL)='?([^'\s]+)")
GIVE_UP_SECONDS: Final = 180


@dataclass
class Newcomer:
    """A folder, and terminals in which programs run.

    Attributes:
        folder: Where the newcomer works.
        env: The environment of each terminal.
        stack: Ends the programs.
        replaced: What of the pages is another here, since ports and stores are shared with other tests.
    """

    folder: Path
    env: dict[str, str]
    stack: ExitStack
    replaced: dict[str, str]
    terminals: dict[str, Running] = field(default_factory=dict[str, Running])

    def follow(self, page: str) -> None:
        """Do what a page says; what runs in terminals goes on."""
        blocks = BLOCK.findall((PAGES / f"{page}.md").read_text())
        assert blocks
        for language, title, text in blocks:
            for documented, here in self.replaced.items():
                text = text.replace(documented, here)  # noqa: PLW2901
            if language == "python":
                (self.folder / title).write_text(text)
            elif language == "console":
                self.type_and_compare(text)
            elif title:
                self.start(title, text)

    def start(self, terminal: str, commands: str) -> None:
        """Run a program in a terminal, after the one that runs there, and wait until it is ready."""
        self.stop(terminal)
        log = self.folder / f"{terminal}-{len(list(self.folder.glob('*.log')))}.log"
        *before, last = commands.strip().splitlines()
        script = "\n".join([*before, f"exec {last}"])
        child = self.stack.enter_context(process(["bash", "-c", script], self.env, log, folder=self.folder))
        self.terminals[terminal] = child
        wait_until(lambda: READY.search(log.read_text()) or child.poll() is not None, f"{last} is ready")
        assert child.poll() is None, log.read_text()
        if export := EXPORTED.search(log.read_text()):
            self.env[export[1]] = export[2]

    def stop(self, terminal: str) -> None:
        """Press Ctrl-C in a terminal, and wait until its program has ended."""
        if child := self.terminals.pop(terminal, None):
            child.send_signal(signal.SIGINT)
            child.wait(GIVE_UP_SECONDS)

    def stop_all(self) -> None:
        """Press Ctrl-C in each terminal, in the one of the server first."""
        for terminal in sorted(self.terminals, reverse=True):
            self.stop(terminal)

    def type_and_compare(self, session: str) -> None:
        """Type each command of a session, and find each line that the page shows of its output; ``…`` is any text."""
        for entry in re.split(r"^\$ ", session, flags=re.MULTILINE)[1:]:
            command, _, shown = entry.partition("\n")
            done = typed(command, env=self.env, folder=self.folder, give_up_seconds=GIVE_UP_SECONDS)
            assert done.returncode == 0, f"{command}\n{done.stdout}"
            for line in shown.splitlines():
                pattern = ".*".join(map(re.escape, line.strip().split("…")))
                assert re.search(pattern, done.stdout), f"{command} prints {line!r}, and printed\n{done.stdout}"


@pytest.fixture
def newcomer(tmp_path: Path, store_url: str) -> Generator[Newcomer]:
    folder = tmp_path / f"tutorial-{os.getpid()}"
    folder.mkdir()
    commands = commands_folder(tmp_path, mcp_celery="mcp-celery", celery="celery")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MCP_CELERY_", "PYTHON"))}
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), inherited["PATH"]])
    env = {**inherited, "PATH": path, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    env["XDG_STATE_HOME"] = str(tmp_path / "state")
    port = str(reserve_port())
    replaced = {":8000": f":{port}", "mcp-celery dev ": f"mcp-celery dev --port {port} "}
    replaced |= {"mcp-celery serve ": f"mcp-celery serve --port {port} ", "redis://127.0.0.1:6379/0": store_url}
    with ExitStack() as stack:
        yield Newcomer(folder, env, stack, replaced)


def test_the_tutorials_commands_print_what_its_pages_show(newcomer: Newcomer) -> None:
    """In the order of the pages, in which each uses files and programs of those before."""
    newcomer.follow("server")
    newcomer.stop_all()
    assert (newcomer.folder / "reports.py").read_text().count("0.2") == 1, "the next page says what takes its place"
    newcomer.follow("worker")
    newcomer.follow("client")
    newcomer.stop_all()
    newcomer.follow("question")
    newcomer.stop_all()
    # Its store is one that other tests use too.
    newcomer.env["MCP_CELERY_NAMESPACE"] = newcomer.folder.name
    newcomer.replaced["mcp.reports"] = f"mcp.{newcomer.folder.name}"
    newcomer.follow("production")
