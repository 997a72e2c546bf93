"""Another project's `mcp-celery`, with the same import name, is noticed where both are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_celery.common.installed import package_conflicts
from mcp_celery.operate.doctor.examining import examine

pytestmark = pytest.mark.anyio


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip leaves of the other project beside this one, besides the files that it replaces."""
    metadata = tmp_path / "mcp_celery-0.2.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.4\nName: mcp-celery\nVersion: 0.2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_this_package_alone_is_no_conflict() -> None:
    assert list(package_conflicts()) == []


@pytest.mark.usefixtures("other_package")
def test_both_packages_are_named_with_the_command_that_helps() -> None:
    (conflict,) = package_conflicts()
    assert conflict.startswith("mcp-celery 0.2.0 is installed beside mcp-celery-backend: ")
    assert "pip uninstall -y mcp-celery mcp-celery-backend" in conflict


@pytest.mark.usefixtures("other_package")
async def test_the_doctor_warns_of_both_packages() -> None:
    finding = await anext(examine(None, None, None, {}))
    assert (finding.area, finding.level, finding.setting) == ("settings", "warning", "mcp-celery")
