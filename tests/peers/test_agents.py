"""Frameworks for agents and tools for developers that are clients, over HTTP and stdio, without a model.

docs/clients.md says of each what it does with tasks, and names these tests.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from tests.peers.conftest import Run

INSPECTOR: Final = "@modelcontextprotocol/inspector@2.12.0"
EXT_TASKS: Final = "@modelcontextprotocol/ext-tasks@0.2.2 @modelcontextprotocol/client@2.4.0"
LANGCHAIN: Final = "langchain-mcp-adapters==0.3.2 mcp==1.30.0"
STRANDS: Final = {
    "2025-11-25": "strands-agents==1.62.0 mcp==1.30.0",
    "2026-07-28": "strands-agents==1.62.0 mcp==2.1.1",
}
PYDANTIC_AI: Final = "pydantic-ai-slim[mcp]==2.68.0 fastmcp-slim==4.2.3"
PYDANTIC_AI_WITH_TASKS: Final = "pydantic-ai-slim[mcp-tasks]==2.68.0 fastmcp-tasks==4.1.4"

COUNTED: Final = "counted to 3"
REFUSED: Final = "Error executing tool refusing: No such dataset"
FAILED: Final = "Error executing tool failing_job"
"""What a tool that runs only as a task gives to clients that follow tasks."""
UNDECLARED: Final = "Client did not declare required extension 'io.modelcontextprotocol/tasks'"
ONLY_AS_TASK: Final = "Tool 'failing_job' runs only as a task"
QUESTION: Final = "Delete a.txt?"
ANSWERED: Final = "accept: a.txt"
NO_WAY_TO_ASK: Final = (
    "Cannot send 'elicitation/create': this transport context has no back-channel for server-initiated requests."
)

pytestmark = pytest.mark.long  # each takes seconds to install, and then as many to run


def test_the_mcp_inspector_of_2025_11_25_calls_tools(run: Run) -> None:
    calls = {"lists": True, "tool": COUNTED, "tool error": REFUSED, "required": FAILED}
    assert run(INSPECTOR, "inspector.cjs", "legacy") == {
        # It asks for a task only where the tool requires one, and cancels each question.
        "one call": {**calls, "ran as a task": False, "answered": "cancel: a.txt"},
        "a connection": {
            **calls,
            "era": "legacy",
            "ran as a task": True,
            "listed": 4,
            "asked": [QUESTION, "server-request"],
            "answered": ANSWERED,
        },
    }


def test_the_mcp_inspector_of_2026_07_28_calls_tools(run: Run) -> None:
    calls = {"lists": True, "ran as a task": True, "tool": COUNTED, "tool error": REFUSED, "required": FAILED}
    undeclared = "The client did not declare the form elicitation capability, which elicitation/create requires"
    assert run(INSPECTOR, "inspector.cjs", "modern") == {
        "one call": {**calls, "answered": undeclared},
        "a connection": {
            **calls,
            "era": "modern",
            "listed": 0,  # this revision lists no tasks
            "asked": [QUESTION, "task-input-required"],
            "answered": ANSWERED,
        },
    }


@pytest.mark.parametrize(
    ("era", "status_of_an_error", "capabilities"),
    [
        ("legacy", "failed", {"inventory": "server-list", "inputResponses": False, "requestedRetention": True}),
        ("modern", "completed", {"inventory": "known-handles", "inputResponses": True, "requestedRetention": False}),
    ],
    ids=["legacy", "modern"],
)
def test_ext_tasks_creates_and_follows_tasks(
    run: Run, era: str, status_of_an_error: str, capabilities: dict[str, Any]
) -> None:
    assert run(EXT_TASKS, "ext_tasks.cjs", era) == {
        "lists": True,
        "capabilities": {"execution": True, "cancellation": True, **capabilities},
        "tool": ["task", "completed", COUNTED],
        "without tasks": ["immediate", "completed", "Hello, Ada!"],
        "tool error": ["task", status_of_an_error, REFUSED],
        "protocol error": ["task", "failed", "the gears are stuck"],
        "required": ["task", status_of_an_error, FAILED],
        "asked": QUESTION,
        "answered": ["task", "completed", ANSWERED],
        "cancelled": "cancelled",
    }


def test_langchain_gets_results_without_tasks(run: Run) -> None:
    assert run(LANGCHAIN, "langchain_mcp.py") == {
        "lists": True,
        "ran as a task": False,
        "tool": COUNTED,
        "progress": [[1.0, 3.0], [2.0, 3.0], [3.0, 3.0]],
        "tool error": ["error", REFUSED],
        "asked": QUESTION,
        "answered": ANSWERED,
        "required": -32601,
    }


@pytest.mark.parametrize("revision", STRANDS)
def test_strands_agents_with_tasks_follows_them(run: Run, revision: str) -> None:
    assert run(STRANDS[revision], "strands_mcp.py", "tasks") == {
        "lists": True,
        "ran as a task": True,
        "tool": ["success", COUNTED],
        "tool error": ["error", REFUSED],
        "required": ["error", FAILED],
        "asked": QUESTION,
        "answered": ["success", ANSWERED],
    }


@pytest.mark.parametrize(
    ("revision", "refusal", "asking"),
    [
        ("2025-11-25", ONLY_AS_TASK, {"asked": QUESTION, "answered": ["success", ANSWERED]}),
        ("2026-07-28", UNDECLARED, {"answered": ["error", f"Tool execution failed: {NO_WAY_TO_ASK}"]}),
    ],
    ids=list(STRANDS),
)
def test_strands_agents_without_tasks_gets_results(
    run: Run, revision: str, refusal: str, asking: dict[str, Any]
) -> None:
    assert run(STRANDS[revision], "strands_mcp.py", "plain") == {
        "lists": True,
        "ran as a task": False,
        "tool": ["success", COUNTED],
        "tool error": ["error", REFUSED],
        "required": ["error", f"Tool execution failed: {refusal}"],
        **asking,
    }


def test_pydantic_ai_with_tasks_follows_them(run: Run) -> None:
    assert run(PYDANTIC_AI_WITH_TASKS, "pydantic_toolset.py") == {
        "revision": "2026-07-28",
        "lists": True,
        "ran as a task": True,
        "tool": COUNTED,
        "tool error": REFUSED,
        "required": FAILED,
        "asked": QUESTION,
        "answered": ANSWERED,
    }


def test_pydantic_ai_without_tasks_gets_results(run: Run) -> None:
    assert run(PYDANTIC_AI, "pydantic_toolset.py") == {
        "revision": "2026-07-28",
        "lists": True,
        "ran as a task": False,
        "tool": COUNTED,
        "tool error": REFUSED,
        "required": UNDECLARED,
        "answered": NO_WAY_TO_ASK,
    }
