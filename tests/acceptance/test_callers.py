"""Nobody is mistaken for another, and nothing secret is left behind: real clients, servers, workers and Flower."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from base64 import b64decode
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from mcp_celery.keys import build_task_key, celery_job_id
from mcp_celery.store.keys import RedisKeys
from tests.support.deployment import Deployment, deployed
from tests.support.flower import run_flower
from tests.support.servers.callers import NOBODYS_QUEUE, Bearer
from tests.support.waiting import eventually
from tests.support.wire import EXTENSION, JSON, Wire, follow

pytestmark = pytest.mark.anyio

SPEC = "tests.support.servers.callers:server"
KEY = "a-key-for-tests-that-has-more-than-32-bytes"
ISSUERS = ("https://one.example", "https://two.example", "")
AT_A_TIME = {"asyncio": 100, "prefork": 4, "threads": 16}
CALLERS, JOBS_EACH = 50, 10
ALICE = Bearer("app", "alice", "https://one.example", secret="alices")
NO_KEYS = "set MCP_CELERY_ENCRYPTION_KEYS"


@dataclass(frozen=True)
class Site:
    """A deployment with a server for anybody and a replica that asks for a bearer token."""

    deployment: Deployment
    open_url: str
    guarded_url: str
    sealed: bool

    def wire(self, bearer: Bearer | None, **headers: str) -> Wire:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if bearer is None:
            return Wire(self.open_url, headers=sent)
        return Wire(self.guarded_url, token=bearer.token, headers=sent)


@pytest.fixture(scope="session", params=[pytest.param("plain", marks=pytest.mark.slow), "sealed"])
def site(request: pytest.FixtureRequest, store_url: str, pool: str) -> Iterator[Site]:
    sealed = request.param == "sealed"
    settings = {
        "MCP_CELERY_SNAPSHOT_HEADERS": "x-trace, Authorization, Cookie" if sealed else "x-trace",
        "MCP_CELERY_ENCRYPTION_KEYS": KEY if sealed else "",
        # A crowd of clients on a busy machine waits; what is asked here is whose each answer is.
        "MCP_CELERY_STORE_TIMEOUT_MS": "30000",
        "MCP_CELERY_PUBLISH_TIMEOUT_MS": "30000",
    }
    name = f"callers-{request.param}-{pool}"
    with (
        deployed(store_url, name, spec=SPEC, settings=settings) as deployment,
        # Celery's own debugging lines name the arguments of every job.
        deployment.worker(pool, AT_A_TIME[pool], level="DEBUG"),
    ):
        yield Site(deployment, deployment.serve(), deployment.serve("guarded"), sealed)


async def ended(wire: Wire, task_id: str) -> JSON:
    return (await follow(wire, task_id))[-1]


@pytest.mark.shows("C7")
async def test_a_job_finds_the_headers_and_the_caller_of_its_request(site: Site) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with site.wire(ALICE, x_trace="t-1", x_other="no", cookie="session=1") as wire:
        wire.meta = {
            "progressToken": "progress-3",
            "traceparent": f"00-{trace}-{parent}-01",
            "tracestate": "vendor=1",
            "example.com/note": "passed on",
        }
        found = (await ended(wire, (await wire.create("look"))["taskId"]))["result"]["structuredContent"]
    secrets = {"authorization": f"Bearer {ALICE.token}", "cookie": "session=1"} if site.sealed else {}
    assert found["headers"] == {"x-trace": "t-1"} | secrets
    assert found["token"]["token"] == (ALICE.token if site.sealed else "")
    assert found["capabilities"] == {"extensions": {EXTENSION: {}}}
    assert (found["client"], found["session"], found["server"]) == ("wire", None, "callers")
    assert found["span"] == f"{trace}-{parent}"
    assert found["meta"] == {
        "progress_token": "progress-3",
        "traceparent": f"00-{trace}-{parent}-01",
        "tracestate": "vendor=1",
        "example.com/note": "passed on",
    }


# --- Identities


def the_callers(dice: random.Random) -> list[Bearer | None]:
    """Anonymous ones, and bearers who differ in client, subject or issuer alone."""
    bearers = [
        Bearer(f"client-{client}", f"user-{user}" if user else "", issuer, secret=f"{client}{user}{index}")
        for client in range(4)
        for user in range(4)
        for index, issuer in enumerate(ISSUERS)
    ]
    found: list[Bearer | None] = [*dice.sample(bearers, CALLERS - 5), *[None] * 5]
    dice.shuffle(found)
    return found


def expected_token(bearer: Bearer | None) -> JSON | None:
    if bearer is None:
        return None
    token: JSON = {"token": bearer.token, "client_id": bearer.client, "scopes": ["use"]}
    if bearer.subject:
        token["subject"] = bearer.subject
    if bearer.issuer:
        token["claims"] = {"iss": bearer.issuer, "note": f"claim-of-{bearer.subject}"}
    return token


@pytest.mark.slow
@pytest.mark.shows("C7")
@pytest.mark.parametrize("site", ["sealed"], indirect=True, scope="session")
async def test_of_500_interleaved_jobs_of_50_callers_each_finds_its_own(site: Site) -> None:
    dice = random.Random(20260728)

    async def one_caller(number: int, bearer: Bearer | None, plan: list[tuple[str, list[int]]]) -> list[JSON]:
        found: list[JSON] = []
        # On a busy machine the server would close a connection that idles at the moment when it is used again.
        async with site.wire(bearer, connection="close") as wire:

            async def one_job(job: int, tool: str, pauses: list[int]) -> JSON:
                trace = f"caller {number}, job {job}"
                answer = await wire.ask("tools/call", {"name": tool, "arguments": {"pauses_ms": pauses}}, x_trace=trace)
                return {"task": answer.result["taskId"], "trace": trace}

            jobs = await asyncio.gather(*(one_job(job, *one) for job, one in enumerate(plan)))
            for job in jobs:
                final = await ended(wire, job["task"])
                assert final["status"] == "completed", final
                found.append({**job, "seen": final["result"]["structuredContent"]["seen"]})
        return found

    callers = the_callers(dice)
    plans = [
        [
            (dice.choice(["look_around", "look_around_sync"]), [dice.randrange(8) for _ in range(3)])
            for _ in range(JOBS_EACH)
        ]
        for _ in callers
    ]
    results = await asyncio.gather(
        *(one_caller(number, bearer, plan) for number, (bearer, plan) in enumerate(zip(callers, plans, strict=True)))
    )
    requests: set[str] = set()
    for bearer, jobs in zip(callers, results, strict=True):
        for job in jobs:
            first, *others = job["seen"]
            assert others == [first] * len(others)
            headers = first.pop("headers")
            assert headers["x-trace"] == job["trace"]
            assert headers.get("authorization") == (f"Bearer {bearer.token}" if bearer else None)
            requests.add(first.pop("request"))
            assert first == {
                "token": expected_token(bearer),
                "scope": None if bearer is None else bearer.scope,
                "session": None,
                "task": job["task"],
            }
    assert len(requests) == CALLERS * JOBS_EACH


# --- Secrets


def unpacked(text: str, depth: int = 2) -> str:
    """A text, and what is in it as base64: kombu's messages are."""
    if depth == 0:
        return text
    inner: list[str] = []
    for chunk in re.findall(r"[A-Za-z0-9+/]{16,}={0,2}", text):
        try:
            inner.append(b64decode(chunk + "=" * (-len(chunk) % 4)).decode())
        except ValueError:
            continue
    return "\n".join([text, *(unpacked(one, depth - 1) for one in inner)])


def dumps(store: redis.Redis, namespace: str) -> dict[str, str]:
    """Everything that is in the store by key, read as what it is and as Redis would move it to another.

    The tasks of other namespaces are left out.
    """
    client: Any = store
    read: dict[bytes, Callable[[bytes], object]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"stream": client.xrange,
    }
    found: dict[str, str] = {}
    for key in client.keys("*"):
        kind, is_ours = client.type(key), key.startswith(f"mcp_celery:{namespace}:".encode())
        if kind != b"none" and (is_ours or not key.startswith(b"mcp_celery:")):
            found[key.decode()] = unpacked(f"{key} {read[kind](key)} {client.dump(key)}")
    return found


@contextmanager
def everything_sent(store: redis.Redis) -> Generator[list[str]]:
    """Every command that Redis is sent while the block runs; complete when it has ended."""
    commands: list[str] = []
    end = "the-end-of-what-is-monitored"
    with cast(Any, store).monitor() as monitor:

        def listen() -> None:
            for command in monitor.listen():
                commands.append(str(command["command"]))
                if end in commands[-1]:
                    return

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield commands
        finally:
            store.echo(end)
            thread.join(30)


TOKEN, COOKIE, HEADER, ARGUMENT, TRACE, META = (
    f"planted{name}4711" for name in ("Token", "Cookie", "Header", "Argument", "Trace", "Meta")
)
CAROL = Bearer("app", "carol", "https://one.example", secret=TOKEN)


@pytest.mark.shows("C8")
async def test_no_secret_is_left_in_redis_flower_logs_or_errors(site: Site, tmp_path: Path) -> None:
    deployment, gate = site.deployment, tmp_path / "gate"
    never = [TOKEN, COOKIE, HEADER]
    in_snapshots = [ARGUMENT, TRACE, META, "claim-of-carol"]
    # As Celery, kombu and Redis have them, bytes and all.
    store = redis.Redis.from_url(deployment.store_url)
    headers = {"x_trace": TRACE, "x_secret": HEADER, "cookie": f"session={COOKIE}"}
    with run_flower(deployment) as flower, everything_sent(store) as sent:
        async with site.wire(CAROL, **headers) as wire:
            wire.meta = {"example.com/note": META}
            ids = [
                (await wire.create(tool, note=ARGUMENT, **more))["taskId"]
                for tool, more in (("keep", {"gate": str(gate)}), ("decline", {}), ("refuse", {}))
            ]
            parked = (await wire.create("park", note=ARGUMENT, gate=str(gate)))["taskId"]
            job_ids = [
                celery_job_id(build_task_key("app|carol", task_id, "tool", tool))
                for task_id, tool in zip(ids, ("keep", "decline", "refuse"), strict=True)
            ]
            await eventually(
                lambda: json.loads(flower.get("/api/tasks")).get(job_ids[0], {}).get("state") == "STARTED",
                what="Flower sees the running job",
                seconds=60,
            )
            found = [dumps(store, deployment.namespace)]
            pages = [flower.get(f"/{page}") for page in ("", "workers", "tasks", "broker", "api/tasks", "metrics")]
            gate.touch()
            for task_id, status in zip(ids, ("completed", "completed", "failed"), strict=True):
                assert (await ended(wire, task_id))["status"] == status
            found.append(dumps(store, deployment.namespace))
            await eventually(
                lambda: json.loads(flower.get("/api/tasks"))[job_ids[2]]["state"] == "FAILURE", what="Flower sees it"
            )
            for job_id in job_ids:
                pages += [flower.get(f"/task/{job_id}"), flower.get(f"/api/task/info/{job_id}")]
            worker = next(iter(json.loads(flower.get("/api/workers?refresh=1"))))
            pages += [flower.get(f"/worker/{worker}"), flower.get(f"/api/workers?workername={worker}")]
    logs = deployment.logs()
    store.close()

    # What is searched is what it seems to be: what may be there is there.
    keys = RedisKeys("mcp_celery", deployment.namespace)
    assert parked in found[0][NOBODYS_QUEUE]
    assert '"attempt": 1' in found[0][NOBODYS_QUEUE]
    assert all(keys.snapshot("app|carol", task_id) in found[0] for task_id in (ids[0], parked))
    assert not any(keys.snapshot("app|carol", task_id) in found[1] for task_id in ids)  # they have ended
    assert all(task_id in "".join(pages) and task_id in unpacked("\n".join(sent)) for task_id in ids)
    assert all(any(ids[0] in text for name, text in logs.items() if kind in name) for kind in ("server", "worker"))

    everywhere = {**found[0], **{f"{key} later": text for key, text in found[1].items()}}
    everywhere |= {"pages": unpacked("\n".join(pages)), "logs": "\n".join(logs.values())}
    commands = {"sent": unpacked("\n".join(sent))}
    assert leaks(never, everywhere | commands) == []
    if site.sealed:
        assert leaks(in_snapshots, everywhere | commands) == []
    else:
        snapshots = {key: text for key, text in everywhere.items() if ":snapshot" in key}
        assert all(ARGUMENT in text and TRACE in text for key, text in snapshots.items() if ids[0] in key)
        assert leaks(in_snapshots, {key: text for key, text in everywhere.items() if key not in snapshots}) == []


def leaks(secrets: list[str], texts: dict[str, str]) -> list[tuple[str, str]]:
    return [(secret, name) for name, text in texts.items() for secret in secrets if secret in text]


# --- What the logs say instead


async def test_the_logs_name_the_owner_and_the_end_of_each_task(site: Site) -> None:
    bob = Bearer("app", "bob", "https://one.example")
    async with site.wire(ALICE) as alice, site.wire(bob) as stranger:
        task_id = (await alice.create("greet"))["taskId"]
        await ended(alice, task_id)
        await alice.get(task_id)
        assert (await stranger.ask("tasks/get", {"taskId": task_id})).error["code"] == -32602
        elsewhere = replace(ALICE, issuer="https://two.example")
        async with site.wire(elsewhere) as impostor:
            assert (await impostor.ask("tasks/cancel", {"taskId": task_id})).error["code"] == -32602

    def told() -> list[str]:
        lines = [line for text in site.deployment.logs().values() for line in text.splitlines() if task_id[:8] in line]
        found = (re.search(r"event=task\..*", line) for line in lines)
        return sorted(re.sub(r"duration_ms=\d+", "duration_ms=…", one[0]) for one in found if one)

    mine = f'scope="app|alice" task={task_id}'
    expected = [
        f'event=task.created {mine} type=tool component="greet"',
        f'event=task.ended {mine} status=completed component="greet" attempt=1 duration_ms=… tool_error=false',
        f'event=task.refused scope="app|alice" task={task_id[:8]}… reason=issuer',
        f'event=task.refused scope="app|bob" task={task_id[:8]}… reason=unknown',
        f"event=task.retrieved {mine} status=completed",
        f"event=task.retrieved {mine} status=completed",
    ]
    await eventually(lambda: told() == expected, what=f"{expected}")


async def test_a_server_without_keys_warns_once_at_start(site: Site) -> None:
    said = {name: text.count(NO_KEYS) for name, text in site.deployment.logs().items() if "flower" not in name}
    assert len(said) == 3
    assert set(said.values()) == {0 if site.sealed else 1}
