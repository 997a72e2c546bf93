"""Idempotency keys: a request that becomes a task, and whose answer was lost, is sent again and makes no second task.

Only servers that announce ``idempotentCreation`` are sent such a request again.
They run a call that says so only as a task, so that no tool runs twice in the foreground.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final, cast

import mcp_types as types
from mcp.shared.message import SessionMessage

from mcp_celery.client.wire import JSON

IDEMPOTENCY_KEY: Final = "mcp-celery/idempotency-key"
ONLY_AS_TASK: Final = "mcp-celery/only-as-task"
_ANNOUNCED: Final = ("mcp-celery/tasks", "idempotentCreation")
"""An extension of this package's servers, and one of its settings."""
_PLACES: Final = ("extensions", "experimental")
"""Where a server announces it: in revision 2025-11-25, which has no extensions, in the second."""
_GREETINGS: Final = frozenset({"initialize", "server/discover"})
"""The requests whose results have the server's capabilities."""
_CREATIONS: Final = frozenset({"tools/call", "prompts/get", "resources/read"})


def keyed(meta: Mapping[str, Any] | None) -> JSON:
    """``_meta`` of a request that may become a task, with an idempotency key: its own, or a new random one."""
    return {IDEMPOTENCY_KEY: secrets.token_urlsafe(24), **(meta or {})}


def with_key(message: SessionMessage) -> SessionMessage:
    """A message; a request that may become a task has an idempotency key."""
    request = message.message
    if not isinstance(request, types.JSONRPCRequest) or not may_become_task(request):
        return message
    return _with_meta(message, request, keyed(_meta_of(request)))


def may_become_task(request: types.JSONRPCRequest) -> bool:
    """Whether a server may make a task of a request: of a tool call, or of another that asks for it."""
    is_asked = "task" in (request.params or {})
    return request.method in _CREATIONS and (request.method == "tools/call" or is_asked)


def repeated(message: SessionMessage) -> SessionMessage:
    """A request to send again. The server does not know whether it has run before, and must not run it again."""
    request = message.message
    if not isinstance(request, types.JSONRPCRequest) or request.method != "tools/call":
        return message
    return _with_meta(message, request, {**_meta_of(request), ONLY_AS_TASK: True})


def is_refused_repeat(error: types.ErrorData) -> bool:
    """Whether a server refuses a request that was sent again, because it would run in the foreground."""
    return error.code == types.METHOD_NOT_FOUND and ONLY_AS_TASK in error.message


def announced_in(request: types.JSONRPCRequest, result: Mapping[str, Any]) -> bool:
    """Whether a request's result announces that the server makes one task of requests with the same key."""
    if request.method not in _GREETINGS:
        return False
    return any(_at(result, "capabilities", place, *_ANNOUNCED) is True for place in _PLACES)


def _at(found: Any, *names: str) -> Any:
    for name in names:
        found = cast("Mapping[str, Any]", found).get(name) if isinstance(found, Mapping) else None
    return found


def _meta_of(request: types.JSONRPCRequest) -> JSON:
    meta = (request.params or {}).get("_meta")
    return cast(JSON, meta) if isinstance(meta, dict) else {}


def _with_meta(message: SessionMessage, request: types.JSONRPCRequest, meta: JSON) -> SessionMessage:
    params = {**(request.params or {}), "_meta": meta}
    return SessionMessage(request.model_copy(update={"params": params}), metadata=message.metadata)
