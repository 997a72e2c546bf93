"""Clients that other people wrote, end to end over HTTP and stdio. The table of docs/clients.md names these tests."""

from __future__ import annotations

import pytest

from tests.peers.conftest import Run


@pytest.mark.shows("L1", "L3", "L4", "L13", "L14", "L17", "L21", "L22", "L23", "L29", "L30", "L31", "L35", "L39")
def test_the_sdk_1_30_creates_follows_and_lists_tasks(run: Run) -> None:
    seen = run("mcp==1.30.0", "mcp_1_30.py")
    support = seen.pop("support")
    assert (support["slow_compute"], support["failing_job"], support.get("greet")) == ("optional", "required", None)
    assert seen.pop("capability")["requests"]["tools"] == {"call": {}}
    assert seen == {
        "revision": "2025-11-25",
        "created": ["working", 30_000],
        "result": ["counted to 3", True],
        "got": "completed",
        "listed": True,
        "pushed": ["working", "completed"],
        "polled": "completed",
        "cancelled": "cancelled",
        "result of the cancelled": -32800,
        "cancelled again": -32602,
        "forbidden": -32601,
        "required": -32601,
        "unknown": -32602,
        "tool error": True,
        "status of the tool error": "failed",
        "protocol error": -32050,
        "in the foreground": "done",
        "prompts/get": "A plain briefing about tides, as a task",
        "resources/read": "# Report",
        "while it asks": "input_required",
        "asked": ["Delete a.txt?", True],
        "answered": "accept: a.txt",
    }


@pytest.mark.shows("L4", "L13", "L14", "L21", "L23", "L31", "L35", "L39")
def test_fastmcp_3_creates_follows_and_awaits_tasks(run: Run) -> None:
    assert run("fastmcp==3.4.10", "fastmcp_3.py") == {
        "ran as a task": True,
        "tool": "counted to 3",
        "pushed": ["completed"],
        "status": "completed",
        "awaited again": "counted to 3",
        "prompt": "A plain briefing about tides, as a task",
        "resource": "# Report",
        "template": "page 7",
        "listed": True,
        "cancelled": "cancelled",
        "asked": "Delete a.txt?",
        "answered": "accept: a.txt",
        "tool error": "Error executing tool refusing: No such dataset",
        "forbidden": -32601,
        "required": -32601,
    }


@pytest.mark.shows("M2", "M10", "M11", "M14")
def test_fastmcp_4_creates_follows_and_answers_tasks(run: Run) -> None:
    assert run("fastmcp[tasks]==4.1.4", "fastmcp_4.py") == {
        "revision": "2026-07-28",
        "ordinary call ran as a task": True,
        "created": "working",
        "tool": "counted to 3",
        "status": "completed",
        "cancelled": "cancelled",
        "while it asks": "input_required",
        "asked": "Delete a.txt?",
        "answered": "accept: a.txt",
        "tool error": "Error executing tool refusing: No such dataset",
        "protocol error": "the gears are stuck",
        "required": "Error executing tool failing_job",
        "forbidden": True,
    }


@pytest.mark.shows("L1", "L3", "L4", "L13", "L14", "L21", "L22", "L23", "L30", "L31", "L35", "L39")
def test_the_typescript_sdk_creates_follows_and_lists_tasks(run: Run) -> None:
    assert run("@modelcontextprotocol/sdk@1.32.2", "typescript.cjs") == {
        "support": ["optional", "required", None],
        "capability": {"call": {}},
        "created": ["working", 30_000],
        "polled": "completed",
        "result": ["counted to 3", True],
        "got": "completed",
        "listed": True,
        "pushed": "completed",
        "while it asks": "input_required",
        "asked": ["Delete a.txt?", True],
        "answered": "accept: a.txt",
        "cancelled": "cancelled",
        "result of the cancelled": -32800,
        "forbidden": -32601,
        "required": -32601,
        "tool error": True,
        "protocol error": -32050,
        "in the foreground": "done",
        "prompts/get": "A plain briefing about tides, as a task",
        "resources/read": "# Report",
    }
