"""Clients of other makers, each in a venv of its own, against a real server and a real worker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import pytest

from mcp_celery.embedded import EmbeddedStore
from tests.support.deployment import MODULE, ROOT, Deployment, deployed
from tests.support.locks import exclusively

PATIENCE_SECONDS: Final = 120
INSTALL_SECONDS: Final = 600

Run = Callable[..., dict[str, Any]]


def interpreter_with(requirement: str) -> Path:
    """The interpreter of a venv that holds one requirement; skips the test where it cannot be made."""
    venv = ROOT / "build" / f"peer-{requirement.replace('==', '-')}"
    python, whole = venv / "bin" / "python", venv / "whole"
    venv.parent.mkdir(exist_ok=True)
    with exclusively(venv.with_name(f"{venv.name}.lock")):
        if not whole.exists():
            _make(venv, requirement)
            whole.touch()
    return python


def _make(venv: Path, requirement: str) -> None:
    uv = [sys.executable, "-m", "uv"]
    for argv in (
        [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(venv)],
        [*uv, "pip", "install", "--quiet", "--python", str(venv / "bin" / "python"), requirement],
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
        if done.returncode:
            pytest.skip(f"{requirement} cannot be installed: {(done.stderr or done.stdout).strip()[-300:]}")


@pytest.fixture(scope="session")
def deployment() -> Iterator[Deployment]:
    folder = Path(tempfile.mkdtemp(prefix="mcp-peers-"))
    with EmbeddedStore.open(folder / "store") as store, deployed(store.url, "peers") as found, found.worker("asyncio"):
        yield found
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def url(deployment: Deployment) -> str:
    return deployment.serve()


@pytest.fixture(params=["http", "stdio"])
def target(request: pytest.FixtureRequest, url: str) -> list[str]:
    """What a program is told about the server: its URL, or the command that serves on stdio."""
    if request.param == "http":
        return [url]
    return [sys.executable, "-m", "mcp_celery", "serve", f"{MODULE}:server", "--transport", "stdio"]


@pytest.fixture
def run(deployment: Deployment, target: list[str]) -> Run:
    """Runs a program with the interpreter of a peer, and gives what it printed."""

    def run_program(requirement: str, program: str) -> dict[str, Any]:
        argv = [str(interpreter_with(requirement)), str(Path(__file__).parent / "programs" / program), *target]
        env = {**os.environ, **deployment.env()}
        done = subprocess.run(
            argv, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return cast("dict[str, Any]", json.loads(done.stdout.splitlines()[-1]))

    return run_program
