"""Somebody else's project and its workers, whose interpreter has Celery and nothing of ours."""

from __future__ import annotations

import site
import venv
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mcp_celery.common.redis_translation import celery_url
from tests.support.deployment import ROOT, Deployment, process, wait_until

THEIRS = ROOT / "tests" / "support" / "theirs"


def interpreter_without_us(folder: Path) -> Path:
    """The interpreter of a new venv that has the packages of this one, but not this project.

    The packages are found over a ``.pth`` file, and the ``.pth`` files among them are not read: that of an editable
    install is one.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "packages.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin" / "python"


def host_environment(
    store_url: str, namespace: str, *, broker: str | None = None, backend: str | None = None
) -> dict[str, str]:
    """The variables of the host's project, for its workers and for the server that exposes its jobs."""
    return {
        "PYTHONPATH": str(THEIRS),
        "REPORTS_BROKER": broker or celery_url(store_url),
        "REPORTS_BACKEND": backend or celery_url(store_url),
        "REPORTS_QUEUE": f"reports-{namespace}",
    }


@contextmanager
def host_worker(
    python: Path, deployment: Deployment, variables: dict[str, str], *flags: str, concurrency: int = 4
) -> Generator[None]:
    """A worker of the host's project, for as long as the context lasts."""
    queue = variables["REPORTS_QUEUE"]
    argv: Sequence[str] = (
        *(str(python), "-m", "celery", "-A", "reports.app", "worker", "-l", "INFO", "--without-mingle"),
        *("--without-gossip", "-c", str(concurrency), "-Q", f"{queue},{queue}-routed"),
        *("-n", f"{deployment.namespace}-host@%h", *flags),
    )
    log = deployment.folder / "host.log"
    begun = log.stat().st_size if log.exists() else 0
    env = {name: value for name, value in deployment.env(**variables).items() if not name.startswith("MCP_CELERY_")}
    with process(list(argv), env, log, quiet=deployment.quiet, folder=THEIRS) as child:
        wait_until(
            lambda: b" ready." in log.read_bytes()[begun:] or child.poll() is not None, "the host's worker is ready"
        )
        assert child.poll() is None, log.read_text()
        yield
