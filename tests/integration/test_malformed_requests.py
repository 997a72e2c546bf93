"""Malformed requests of both revisions, at a server for anybody and at one for bearers.

Each gets an answer: a refusal of HTTP, or a JSON-RPC message whose error is the request's own fault. The server never
says that it is at fault itself, logs no traceback, works afterwards, and keeps nothing for good. ``make fuzz`` sends
ten thousand; ``--requests N --fuzz-seed S`` others.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final, cast

import anyio
import httpx2
import pytest

from mcp_celery.embedded import EmbeddedStore
from tests.support.deployment import Deployment, deployed
from tests.support.leaks import eternal_keys
from tests.support.malformed import LEGACY, MODERN, Malformed, malformed
from tests.support.nodes import short_folder
from tests.support.wire import JSON, Wire, follow

pytestmark = pytest.mark.anyio

AT_A_TIME: Final = 8
OURS: Final = frozenset({-32603})
"""The code of an error that is the server's fault."""


@pytest.fixture(scope="module")
def site() -> Iterator[Deployment]:
    with (
        short_folder() as folder,
        EmbeddedStore.open(folder / "store") as store,
        deployed(store.url, f"malformed-{os.urandom(4).hex()}") as found,
        found.worker("asyncio"),
    ):
        yield found
        assert eternal_keys(store.url) == []


@pytest.fixture
async def http() -> AsyncGenerator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=60) as client:
        yield client


async def session_id_of(http: httpx2.AsyncClient, url: str, headers: dict[str, str]) -> str:
    """A session of revision 2025-11-25."""
    params: JSON = {
        "protocolVersion": LEGACY,
        "capabilities": {"tasks": {"list": {}}},
        "clientInfo": {"name": "malformed", "version": "1"},
    }
    body: JSON = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    answer = await http.post(url, json=body, headers={"accept": "application/json, text/event-stream", **headers})
    assert answer.status_code == 200, answer.text
    return answer.headers["mcp-session-id"]


async def answer_to(http: httpx2.AsyncClient, url: str, request: Malformed, headers: dict[str, str]) -> str | None:
    """Send a request.

    Returns:
        What is wrong with its answer, None for nothing.
    """
    raw = {name: value.encode("latin-1") for name, value in {**headers, **request.headers}.items()}
    sent = http.build_request(request.verb, url, content=request.body, headers=cast(Any, raw))
    response = await http.send(sent, stream=True)
    try:
        if response.status_code >= 500:
            return f"HTTP {response.status_code}: {(await response.aread())[:300]!r}"
        kind = response.headers.get("content-type", "")
        if "text/event-stream" in kind:
            return await _first_event(response)
        text = await response.aread()
        if response.status_code >= 400 or not text:
            return None if "application/json" not in kind or not text else _fault(json.loads(text))
        return _fault(json.loads(text))
    finally:
        await response.aclose()


async def _first_event(response: httpx2.Response) -> str | None:
    """The first message of a stream; one that stays open is left."""
    read = b""
    with anyio.move_on_after(2):
        async for chunk in response.aiter_bytes():
            read += chunk
            *whole, read = read.split(b"\n")  # not `aiter_lines`, which takes U+0085 for the end of a line
            for line in whole:
                if line.startswith(b"data:") and line[5:].strip():
                    return _fault(json.loads(line[5:]))
    return None


def _fault(message: Any) -> str | None:
    for one in cast("list[Any]", message if isinstance(message, list) else [message]):
        error = cast(JSON, one).get("error") if isinstance(one, dict) else None
        if isinstance(error, dict) and cast(JSON, error)["code"] in OURS:  # what OAuth refuses has a text there
            return json.dumps(one)[:300]
    return None


@pytest.mark.smoke
@pytest.mark.parametrize("attribute", [None, "guarded"], ids=["open", "bearers"])
async def test_each_malformed_request_is_answered_and_none_as_a_server_error(
    site: Deployment, http: httpx2.AsyncClient, attribute: str | None, request: pytest.FixtureRequest
) -> None:
    number, seed = (cast(int, request.config.getoption(name)) for name in ("--requests", "--fuzz-seed"))
    token = None if attribute is None else "alice"
    url = site.serve(attribute)
    bearer = {} if token is None else {"authorization": f"Bearer {token}"}
    faults: list[str] = []
    requests = malformed(2 * seed + (attribute is None), number // 2)

    async def send() -> None:
        session_id = await session_id_of(http, url, bearer)
        for one in requests:
            headers = bearer | ({} if one.revision == MODERN else {"mcp-session-id": session_id})
            try:
                fault = await answer_to(http, url, one, headers)
            except httpx2.HTTPError as error:
                fault = f"no answer: {error!r}"
            if fault is not None:
                faults.append(f"{one.verb} {one.revision} {one.wrong} {one.body[:300]!r}\n  {fault}")
            if one.verb == "DELETE":  # it may have ended the session
                session_id = await session_id_of(http, url, bearer)

    async with anyio.create_task_group() as group:
        for _ in range(AT_A_TIME):
            group.start_soon(send)

    assert not faults, f"seed {seed}, {len(faults)} of {number // 2}:\n" + "\n".join(faults[:10])
    async with Wire(url, token=token) as wire:
        created = await wire.create("slow_compute", seconds=0)
        assert (await follow(wire, created["taskId"]))[-1]["status"] == "completed"
    logs = "".join(site.logs().values())
    assert "Traceback" not in logs, logs[logs.index("Traceback") - 500 :][:3_000]
