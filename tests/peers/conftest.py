"""Clients of other makers, each in a folder of its own, against a real server and a real worker."""

from __future__ import annotations

import json
import os
import re
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
from tests.support.node import NODE, NpmError, install

PROGRAMS: Final = Path(__file__).parent / "programs"
PATIENCE_SECONDS: Final = 300
INSTALL_SECONDS: Final = 600

Run = Callable[..., dict[str, Any]]


def interpreter_with(requirements: str) -> Path:
    """The interpreter of a venv with requirements, by spaces; skips the test where it cannot be made."""
    return _installed(requirements, _make_venv) / "bin" / "python"


def modules_of(packages: str) -> Path:
    """Node's modules: packages from npm, by spaces, and what they need; skips the test where they cannot be had."""
    return _installed(packages, _install_from_npm) / "node_modules"


def _installed(peer: str, install_into: Callable[[Path, str], None]) -> Path:
    """The folder of a peer, filled by the first of the processes and the runs that need it."""
    folder = ROOT / "build" / f"peer-{re.sub('[^a-z0-9.]+', '-', peer)}"
    folder.parent.mkdir(exist_ok=True)
    with exclusively(folder.with_name(f"{folder.name}.lock")):
        if not (whole := folder / "whole").exists():
            install_into(folder, peer)
            whole.touch()
    return folder


def _make_venv(venv: Path, requirements: str) -> None:
    uv = [sys.executable, "-m", "uv"]
    for argv in (
        [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(venv)],
        [*uv, "pip", "install", "--quiet", "--python", str(venv / "bin" / "python"), *requirements.split()],
    ):
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
        if done.returncode:
            pytest.skip(f"{requirements} cannot be installed: {(done.stderr or done.stdout).strip()[-300:]}")


def _install_from_npm(folder: Path, packages: str) -> None:
    try:
        install(*packages.split(), folder=folder, timeout_seconds=INSTALL_SECONDS)
    except NpmError as error:
        pytest.skip(f"{packages} cannot be installed: {str(error)[:300]}")


@pytest.fixture(scope="session")
def deployment() -> Iterator[Deployment]:
    folder = Path(tempfile.mkdtemp(prefix="mcp-peers-"))
    with (
        EmbeddedStore.open(folder / "store") as store,
        # The limits of clients are measured here. On a busy machine the store may take seconds for 20 MB.
        deployed(store.url, "peers", settings={"MCP_CELERY_STORE_TIMEOUT_MS": "60000"}) as found,
        found.worker("asyncio"),
    ):
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
    """Runs a program with a peer that it needs, one or more packages, and gives what it printed.

    A program in Python gets the interpreter of the peer's venv, one in JavaScript gets Node, which finds the peer's
    modules. Its arguments are those of the call, and then the target.
    """

    def run_program(peer: str, program: str, *arguments: str) -> dict[str, Any]:
        env = {**os.environ, **deployment.env()}
        if program.endswith(".cjs"):
            interpreter, env["NODE_PATH"] = NODE, str(modules_of(peer))
        else:
            interpreter = interpreter_with(peer)
        argv = [str(interpreter), str(PROGRAMS / program), *arguments, *target]
        done = subprocess.run(
            argv, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return cast("dict[str, Any]", json.loads(done.stdout.splitlines()[-1]))

    return run_program
