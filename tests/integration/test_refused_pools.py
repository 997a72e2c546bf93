"""Pools on which no job of ours could run: a worker says so in one line, and ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from mcp_celery.common.redis_translation import celery_url
from tests.integration.conftest import TOOLS
from tests.support.deployment import Deployment, deployed, process, wait_until
from tests.support.locks import exclusively
from tests.support.nodes import EmbeddedStoreContainer, environment
from tests.support.programs import ROOT

INSTALL_SECONDS = 300.0
START_SECONDS = 120.0
PACKAGES = ("gevent", "eventlet")
HOST = "tests.support.host"


@pytest.fixture(scope="module")
def green_packages() -> Path:
    """A folder with gevent and eventlet, for the import path of workers; no other test has them."""
    folder = ROOT / "build" / "green-packages"
    folder.parent.mkdir(exist_ok=True)
    with exclusively(folder.with_name(f"{folder.name}.lock")):
        if not (whole := folder / "whole").exists():
            argv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", str(folder), *PACKAGES]
            done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
            if done.returncode:
                pytest.skip(f"{' and '.join(PACKAGES)} cannot be installed: {done.stderr.strip()[-300:]}")
            whole.touch()
    return folder


def start_of(app: str, *options: str, **env: str) -> str:
    """What a worker says that ends by itself."""
    argv = [sys.executable, "-m", "celery", "-A", app, "worker", "--without-mingle", *options]
    variables = environment(MCP_CELERY_SERVER=TOOLS, **env)
    ran = subprocess.run(
        argv, env=variables, cwd=ROOT, capture_output=True, text=True, check=False, timeout=START_SECONDS
    )
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr.splitlines()[-1]


def with_packages(folder: Path) -> str:
    return os.pathsep.join((str(ROOT), str(folder)))


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_pools_of_green_threads_are_refused(store: EmbeddedStoreContainer, green_packages: Path, pool: str) -> None:
    said = start_of("mcp_celery", "-P", pool, MCP_CELERY_REDIS_URL=store.url, PYTHONPATH=with_packages(green_packages))
    assert said.startswith(f"Error: this worker cannot run tasks of an MCP server: the {pool} pool")
    assert "-P threads" in said


@pytest.mark.smoke
def test_pools_of_spawned_processes_are_refused(store: EmbeddedStoreContainer, tmp_path: Path) -> None:
    (tmp_path / "spawned.py").write_text("worker_pool_start_method = 'spawn'")
    said = start_of(
        "mcp_celery",
        *("-P", "processes"),
        MCP_CELERY_REDIS_URL=store.url,
        CELERY_CONFIG_MODULE="spawned",
        PYTHONPATH=with_packages(tmp_path),
    )
    assert said.startswith("Error: this worker cannot run tasks of an MCP server: processes that are started by spawn")
    assert "by fork" in said


class TestTheAppOfAHost:
    @pytest.fixture
    def deployment(self, store: EmbeddedStoreContainer, green_packages: Path) -> Generator[Deployment]:
        name = f"green-{os.urandom(3).hex()}"
        settings = {
            "HOST_NAME": name,
            "HOST_BROKER": celery_url(store.url),
            "HOST_BACKEND": celery_url(store.url),
            # Their own setting leaves the log to the server's module, which is imported before where `-Q` names queues.
            "HOST_CONF": json.dumps({"worker_hijack_root_logger": True}),
            "MCP_CELERY_NAMESPACE": "",
            "MCP_CELERY_KEY_PREFIX": f"mcp_celery:{name}",
            "MCP_CELERY_REDIS_URL": store.url,
            "PYTHONPATH": with_packages(green_packages),
        }
        with deployed(store.url, name, spec=f"{HOST}.mcp:server", settings=settings, app=HOST) as found:
            yield found

    def test_a_green_pool_of_a_host_is_refused_for_the_queue_of_a_server(self, deployment: Deployment) -> None:
        said = start_of(HOST, "-P", "gevent", **deployment.settings)
        assert f"-X mcp.{deployment.namespace}" in said

    @pytest.mark.parametrize("choice", ["-Q", "-X"])
    def test_a_green_pool_of_a_host_starts_for_its_own_queues(self, deployment: Deployment, choice: str) -> None:
        name = deployment.namespace
        queue = {"-Q": name, "-X": f"mcp.{name}"}[choice]
        argv = [sys.executable, "-m", "celery", "-A", HOST, "worker", "-P", "gevent", choice, queue, "-l", "INFO"]
        log = deployment.folder / "worker.log"
        with process([*argv, "--without-mingle"], deployment.env(), log) as worker:
            wait_until(lambda: " ready." in log.read_text() or worker.poll() is not None, "the worker is ready")
            assert worker.poll() is None
