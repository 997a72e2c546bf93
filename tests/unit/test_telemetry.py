"""What bounds the labels of metrics, what a job's message may say of its publication, and a missing extra."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from mcp_celery.engine import now_ms
from mcp_celery.errors import ConfigurationError
from mcp_celery.telemetry import instruments
from mcp_celery.telemetry.instruments import OTHER
from mcp_celery.telemetry.setup import metrics_endpoint, set_up
from mcp_celery.telemetry.tasks import BoundedNames
from mcp_celery.telemetry.traces import AVAILABLE_HEADER, Delivered
from tests.support.programs import ROOT

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_names_that_come_when_there_are_enough_share_a_label() -> None:
    names = BoundedNames(2)
    assert [names.label(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", OTHER, "a", OTHER]


def test_a_message_carries_its_trace_and_the_time_it_was_sent() -> None:
    at = now_ms() - 5
    said = Delivered.of_message({"traceparent": PARENT, "tracestate": "v=1", AVAILABLE_HEADER: at, "other": "x"})
    assert said == Delivered({"traceparent": PARENT, "tracestate": "v=1"}, at)


@pytest.mark.parametrize("at", ["1", None, True, 0, -5, 1.5], ids=str)
@pytest.mark.parametrize("parent", [7, None, ["x"], "0" * 513], ids=["number", "nothing", "list", "long"])
def test_headers_that_are_no_trace_are_ignored(at: Any, parent: Any) -> None:
    assert Delivered.of_message({"traceparent": parent, AVAILABLE_HEADER: at}) == Delivered({}, None)


def test_a_clock_that_is_ahead_makes_no_negative_wait() -> None:
    waited_from = Delivered.of_message({AVAILABLE_HEADER: now_ms() + 60_000}).available_at_ms
    assert waited_from is not None
    assert waited_from <= now_ms()


def test_the_error_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)  # as if it were not installed
    with pytest.raises(ConfigurationError, match=r"mcp-celery-backend\[telemetry\]"):
        set_up(frozenset({"otlp"}), "a-server")


def test_there_is_no_endpoint_without_the_setting() -> None:
    set_up(frozenset(), "a-server")
    assert metrics_endpoint(frozenset()) == {}
    assert metrics_endpoint(frozenset({"otlp"})) == {}


def test_the_page_names_each_metric_and_no_other() -> None:
    kinds = instruments.Instrument | instruments.Gauge
    made = {one.name.replace(".", "_") for one in vars(instruments).values() if isinstance(one, kinds)}
    cells = re.findall(r"^\| (`mcp_.*?) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert {re.sub("_(total|seconds)$", "", name) for cell in cells for name in re.findall("`(.*?)`", cell)} == made
