"""What ``import mcp_celery`` gives, and what it costs."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import mcp_celery

INSTALLS = """
import sys
from celery import Celery
from mcp_celery import install

install(Celery("proj"), "proj.mcp:server")
loaded = {name.partition(".")[0] for name in sys.modules}
print(sorted(loaded & {"mcp", "redis", "pydantic", "starlette"}))
"""


@pytest.mark.parametrize("name", mcp_celery.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(mcp_celery, name).__name__ == name


def test_no_other_name_is_public() -> None:
    for name in ("app", "no_such_name"):  # Celery would take `app` for the app, whatever it is
        assert not hasattr(mcp_celery, name)


def test_a_process_that_only_installs_loads_no_sdk() -> None:
    found = subprocess.run([sys.executable, "-c", INSTALLS], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "path",
    [
        "mcp_celery.worker.pool:TaskPool",
        "mcp_celery.worker.pool:await_in_job",
        "mcp_celery.worker.consumer:Consumer",
        "mcp_celery.worker.elastic:Elastic",
        "mcp_celery.embedded:EmbeddedStore",
        "mcp_celery.logs:LogFormatter",
        "mcp_celery.server:TaskServer",
    ],
)
def test_import_paths_that_settings_and_programs_name_stay(path: str) -> None:
    assert pkgutil.resolve_name(path).__name__ == path.partition(":")[2]
