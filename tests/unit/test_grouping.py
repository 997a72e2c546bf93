"""Tests that share a fixture of their module run in one process of pytest-xdist, which makes it once."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="module")
def expensive() -> int:
    """What would take long to make in each process."""
    return os.getpid()


@pytest.mark.parametrize("case", range(2))
def test_xdist_gets_the_group_of_each_test(request: pytest.FixtureRequest, expensive: int, case: int) -> None:
    """It writes the group behind the test's id, by a name of pytest's that is not public."""
    assert expensive == os.getpid(), case
    if "PYTEST_XDIST_WORKER" in os.environ and request.config.getoption("loadgroup", default=False):
        assert request.node.nodeid.endswith("@tests/unit/test_grouping.py")
