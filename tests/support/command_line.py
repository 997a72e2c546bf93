"""The command line as users type it: real processes, in a folder and an environment of a test's own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.nodes import environment
from tests.support.programs import ROOT, forked_command
from tests.support.waiting import eventually_sync

GIVE_UP_SECONDS = 180.0
MARK = "TEST_MARK"


class Running:
    """A command that runs, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.printed: list[str] = []
        self._news = threading.Condition()
        self._readers = [threading.Thread(target=self._read, args=(pipe,)) for pipe in (process.stdout, process.stderr)]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Any) -> None:
        for line in pipe:
            with self._news:
                self.printed.append(line.rstrip("\n"))
                self._news.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.printed)

    def until_printed(self, pattern: str) -> re.Match[str]:
        """Wait for a line."""
        found: re.Match[str] | None = None

        def is_there() -> bool:
            nonlocal found
            found = re.search(pattern, self.text)
            return found is not None

        with self._news:
            self._news.wait_for(is_there, GIVE_UP_SECONDS)
        assert found, f"{pattern!r} was not printed:\n{self.text}"
        return found

    def end(self) -> int:
        """Wait for its end, and return its exit status."""
        status = self.process.wait(GIVE_UP_SECONDS)
        for reader in self._readers:
            reader.join(GIVE_UP_SECONDS)
        return status


class CommandLine:
    """Runs commands, in a folder and an environment of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = uuid.uuid4().hex
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MCP_CELERY_")}
        self._env = {**kept, "XDG_STATE_HOME": str(folder / "state"), "PYTHONPATH": str(ROOT), MARK: self._mark}
        self.started: list[subprocess.Popen[str]] = []

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the commands."""
        return dict(self._env)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def start(self, *arguments: str, cwd: Path | None = None, forked: bool = True, **env: str) -> Running:
        """Start a command.

        Args:
            arguments: Those of the command.
            cwd: Where it works; None: in the test's folder.
            forked: Whether the fork server runs it, which saves time. The process that is started then passes signals
                on, and its children are none of the command's.
            env: Variables beside those of the test.
        """
        process = subprocess.Popen(
            [*(forked_command("mcp_celery") if forked else (sys.executable, "-m", "mcp_celery")), *arguments],
            cwd=cwd or self.folder,
            env={**self._env, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return Running(process)

    def run(self, *arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*forked_command("mcp_celery"), *arguments],
            cwd=cwd or self.folder,
            env={**self._env, **env},
            capture_output=True,
            text=True,
            timeout=GIVE_UP_SECONDS,
            check=False,
        )

    def processes(self) -> list[psutil.Process]:
        """All that was started here, however far removed: an environment is inherited by daemons, too."""
        return [one for one in psutil.process_iter() if _mark_of(one) == self._mark]

    def close(self) -> None:
        """Wait for the end of everything; what does not end is killed, and fails the test."""
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        with suppress(AssertionError):
            eventually_sync(lambda: not self.processes())
        left = self.processes()
        commands = [" ".join(one.cmdline()) for one in left]
        for one in left:
            one.kill()
        for process in self.started:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    pipe.close()
        assert commands == [], "processes were left"


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK) if process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def refused(module: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends with an error of its own at its start, and shows no traceback.

    Args:
        module: What ``python -m`` runs.
        arguments: The rest of the command line.
        variables: Variables of its environment.
    """
    ended = subprocess.run(
        [*forked_command(module), *arguments],
        env=environment(**variables),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=GIVE_UP_SECONDS,
        check=False,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode not in (0, -signal.SIGKILL), said
    assert "Traceback" not in said
    return ended
