"""The operators' commands, as far as no store is needed."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import click
import pytest

from mcp_celery.cli.operate.commands import Duration

_FOREIGN: Final = """
import sys
before = set(sys.modules)
import click
clicks = set(sys.modules)
import mcp_celery.cli.operate.commands
new = {name for name in set(sys.modules) - clicks if name.split('.')[0] not in sys.stdlib_module_names}
print(*sorted(new))
"""


def test_what_every_celery_call_imports_needs_click_alone() -> None:
    done = subprocess.run([sys.executable, "-c", _FOREIGN], capture_output=True, text=True, check=True, timeout=120)
    assert set(done.stdout.split()) == {
        "mcp_celery",
        "mcp_celery.cli",
        "mcp_celery.cli.body",
        "mcp_celery.cli.operate",
        "mcp_celery.cli.operate.commands",
    }


@pytest.mark.parametrize(("text", "ms"), [("90", 90_000), ("90s", 90_000), ("15m", 900_000), ("7d", 604_800_000)])
def test_a_time(text: str, ms: int) -> None:
    assert Duration().convert(text, None, None) == ms


@pytest.mark.parametrize("text", ["", "m", "1w", "-1s", "1.5h"])
def test_no_time(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no time: expected for example"):
        Duration().convert(text, None, None)
