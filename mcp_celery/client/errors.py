"""Errors of tasks, as their client sees them: one root, one clear line each.

A tool that fails answers with ``CallToolResult(is_error=True)``, which is a result and no error of these.
"""

from __future__ import annotations

from typing import Any

from mcp.shared.exceptions import MCPError


class TaskError(Exception):
    """Root of the errors of tasks.

    Args:
        task_id: The task's id; empty where it is not known.
        message: One line.
    """

    def __init__(self, task_id: str, message: str) -> None:
        super().__init__(message)
        self.task_id = task_id


class TaskFailedError(TaskError, MCPError):
    """The task ended as ``failed``, with the JSON-RPC error that a foreground call raises.

    Args:
        task_id: The task's id.
        code: JSON-RPC error code.
        message: The server's text.
        data: What the server sent with it, or None.
    """

    def __init__(self, task_id: str, code: int, message: str, data: Any = None) -> None:
        MCPError.__init__(self, code, message, data)
        self.task_id = task_id

    def __str__(self) -> str:
        return f"task {self.task_id} failed: {self.error.message} (JSON-RPC error {self.error.code})"


class TaskCancelledError(TaskError):
    """The task ended as ``cancelled``.

    Args:
        task_id: The task's id.
        reason: The server's status message, or None.
    """

    def __init__(self, task_id: str, reason: str | None = None) -> None:
        super().__init__(task_id, f"task {task_id} was cancelled" + (f": {reason}" if reason else ""))


class TaskGoneError(TaskError):
    """The server has no such task for this caller (-32602): unknown, expired or another caller's."""

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id, f"task {task_id} does not exist, has expired, or belongs to another caller")


class TaskTimeoutError(TaskError, TimeoutError):
    """The wait ended before the task did. The task continues."""

    def __init__(self, task_id: str, awaited: str, seconds: float) -> None:
        super().__init__(task_id, f"task {task_id} {awaited} within {seconds:g} s; it goes on")


class TaskEndedError(TaskError):
    """The task has ended, so it can no longer do what was asked."""


class TaskUnreachableError(TaskError):
    """The server has given no answer about the task for longer than ``TasksClient(patience_seconds=…)``."""


class AnswerError(TaskError):
    """A question of the task got no answer: the client's callback gave none, or the server refused it."""


class InvalidTaskError(TaskError):
    """The server sent something that its revision does not allow."""


class ClientClosedError(TaskError):
    """The handle was used outside the client's context, or the connection has ended. The task continues.

    Over HTTP a connection of revision 2025-11-25 ends when the server is restarted.
    """

    def __init__(self, task_id: str) -> None:
        super().__init__(
            task_id,
            f"the client of task {task_id} is closed or its connection has ended; "
            "open a client and use TaskHandle.resume(client, task_id)",
        )
