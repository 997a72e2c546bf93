"""Requests of both revisions with something wrong in them, the same ones for the same seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

JSON = dict[str, Any]

MODERN: Final = "2026-07-28"
LEGACY: Final = "2025-11-25"
EXTENSION: Final = "io.modelcontextprotocol/tasks"
NAMED_BY: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
TASK_ID: Final = "A" * 43
"""As long as a real one, and nobody's."""

METHODS: Final[dict[str, dict[str, JSON]]] = {
    MODERN: {
        "server/discover": {},
        "tools/list": {},
        "tools/call": {"name": "short_lived", "arguments": {"a": 1}, "requestState": "state", "inputResponses": {}},
        # No prompts/get: in this revision the SDK alone serves it, with -32603 where an argument is missing (2.3.0).
        "resources/read": {"uri": "report://1"},
        "tasks/get": {"taskId": TASK_ID},
        "tasks/cancel": {"taskId": TASK_ID},
        "tasks/update": {"taskId": TASK_ID, "inputResponses": {"q": {"action": "accept", "content": {"a": 1}}}},
        "subscriptions/listen": {"notifications": {"taskIds": [TASK_ID], "resourceSubscriptions": []}},
    },
    LEGACY: {
        "ping": {},
        "tools/list": {"cursor": "c"},
        "tools/call": {"name": "short_lived", "arguments": {"a": 1}, "task": {"ttl": 1_000}},
        "prompts/get": {"name": "briefing", "arguments": {"topic": "tides"}, "task": {"ttl": 1_000}},
        "resources/read": {"uri": "report://1", "task": {}},
        "tasks/get": {"taskId": TASK_ID},
        "tasks/result": {"taskId": TASK_ID},
        "tasks/cancel": {"taskId": TASK_ID},
        "tasks/list": {"cursor": "c"},
        "notifications/cancelled": {"requestId": 1, "reason": "none"},
        "logging/setLevel": {"level": "debug"},
    },
}


def deep(levels: int) -> Any:
    value: Any = 0
    for number in range(levels):
        value = [value] if number % 2 else {"a": value}
    return value


ODD: Final[tuple[Callable[[random.Random], Any], ...]] = (
    lambda _: None,
    lambda _: True,
    lambda _: "",
    lambda _: [],
    lambda _: {},
    lambda chance: chance.choice([0, -1, 2**31, 2**63, -(2**70), 1e308, 0.5]),
    lambda _: float("nan"),
    lambda _: "\ud800",
    lambda _: "\x00\x1b[31m\x85\u202e",
    lambda chance: "x" * chance.choice([200, 5_000, 100_000]),
    lambda chance: deep(chance.choice([20, 150, 900])),
    lambda _: {"$ref": "http://127.0.0.1:9/schema", "__type__": "datetime", "__value__": 1},
    lambda chance: [{"k": n} for n in range(chance.choice([3, 500]))],
    lambda _: "../../etc/passwd",
    lambda _: "anon:*:tool:*",
    lambda chance: chance.choice(["tools/call", MODERN, LEGACY, "auth:x:y:tool:z", TASK_ID]),
)

HEADERS: Final[tuple[tuple[str, str], ...]] = (
    ("content-type", "text/plain"),
    ("content-type", "application/json; charset=utf-16"),
    ("accept", "text/html"),
    ("mcp-protocol-version", "1999-01-01"),
    ("mcp-protocol-version", "\x7f"),
    ("mcp-method", "tools/list"),
    ("mcp-name", "=?base64?!!?="),
    ("mcp-session-id", "nobodys"),
    ("mcp-session-id", "a:b*c" * 50),
    ("last-event-id", "7"),
    ("x-forwarded-for", "not an address, 1.2.3.4.5"),
    ("authorization", "Bearer \x7f"),
    ("authorization", "Basic YTpi"),
    ("traceparent", "00-zz"),
    ("content-encoding", "gzip"),
    ("origin", "null"),
)


@dataclass
class Malformed:
    """One request.

    Attributes:
        revision: Whose form it has.
        verb: Of HTTP.
        headers: Besides those of HTTP itself.
        body: As it is sent.
        wrong: What was done to it.
    """

    revision: str
    verb: str
    headers: dict[str, str]
    body: bytes
    wrong: list[str] = field(default_factory=list[str])


def malformed(seed: int, number: int) -> Iterator[Malformed]:
    """So many requests."""
    chance = random.Random(seed)
    for n in range(number):
        yield _one(chance, n)


def _one(chance: random.Random, request_id: int) -> Malformed:
    revision = chance.choice([MODERN, LEGACY])
    method = chance.choice(list(METHODS[revision]))
    params = copy.deepcopy(METHODS[revision][method])
    if revision == MODERN:
        params["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientInfo": {"name": "malformed", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {"extensions": {EXTENSION: {}}},
            "progressToken": 1,
        }
    message: JSON = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    headers = {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "mcp-protocol-version": revision,
    }
    if revision == MODERN:
        headers["mcp-method"] = method
        if method in NAMED_BY:
            headers["mcp-name"] = str(params[NAMED_BY[method]])
    request = Malformed(revision, "POST", headers, b"")
    for _ in range(chance.choice([1, 1, 2, 3])):
        if chance.random() < 0.75:
            request.wrong.append(_spoil_value(chance, message))
        else:
            name, value = chance.choice(HEADERS)
            headers[name] = value
            request.wrong.append(f"{name}: {value!r}")
    whole: Any = message
    if chance.random() < 0.05:
        whole = [message] * chance.choice([0, 1, 3])
        request.wrong.append("batch")
    request.body = json.dumps(whole).encode()
    if chance.random() < 0.1:
        request.body = _spoil_bytes(chance, request)
    if chance.random() < 0.05:
        request.verb = chance.choice(["PUT", "DELETE", "PATCH", "OPTIONS"])
        request.wrong.append(request.verb)
    return request


def _spoil_value(chance: random.Random, message: JSON) -> str:
    """Change one place, at any depth."""
    places = list(_places(message, ()))
    path = chance.choice(places)
    holder: Any = message
    for step in path[:-1]:
        holder = holder[step]
    match chance.randrange(6):
        case 0:
            del holder[path[-1]]
            return f"without {path}"
        case 1 if isinstance(holder, dict):
            holder[chance.choice(["extra", "_meta", "$schema", "__proto__", "task", ""])] = chance.choice(ODD)(chance)
            return f"more beside {path}"
        case _:
            holder[path[-1]] = chance.choice(ODD)(chance)
            return f"{path} is odd"


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = [*cast(JSON, value).items()]
    elif isinstance(value, list):
        items = [*enumerate(cast("list[Any]", value))]
    for key, inner in items:
        yield (*path, key)
        if len(path) < 6:
            yield from _places(inner, (*path, key))


def _spoil_bytes(chance: random.Random, request: Malformed) -> bytes:
    body = request.body
    match chance.randrange(6):
        case 0:
            request.wrong.append("cut off")
            return body[: chance.randrange(len(body))]
        case 1:
            request.wrong.append("no UTF-8")
            return body.replace(b'"', b'"\xff\xfe', 3)
        case 2:
            request.wrong.append("rubbish behind it")
            return body + b"}]"
        case 3:
            request.wrong.append("a mark in front of it")
            return b"\xef\xbb\xbf" + body
        case 4:
            request.wrong.append("open brackets")
            return b"[" * chance.choice([10, 5_000, 100_000])
        case _:
            request.wrong.append("a long number")
            return body.replace(b":1", b":" + b"9" * 6_000, 1)
