"""`mcp-celery doctor` finds what is wrong with deployments that are broken on purpose, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import pytest
import redis

from tests.support.deployment import MODULE, Deployment, deployed
from tests.support.own_store import OwnStore
from tests.support.programs import ROOT, forked_command

GIVE_UP_SECONDS = 180.0
KEY: Final = "the-key-of-servers-and-workers-0123456789"
NOWHERE: Final = "redis://127.0.0.1:1/0"
OTHER_SERVER: Final = """
from mcp_celery import TaskServer

server = TaskServer("acceptance")


@server.tool(task=True)
def counting(steps: str) -> str: ...


@server.tool(task=True)
def brand_new() -> str: ...
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnStore]:
    """A store whose configuration and users these tests change."""
    own = OwnStore(tmp_path_factory.mktemp("doctor"))
    yield own
    own.close()


@pytest.fixture(scope="module")
def deployment(store: OwnStore) -> Iterator[Deployment]:
    settings = {"MCP_CELERY_ENCRYPTION_KEYS": KEY, "MCP_CELERY_HEARTBEAT_MS": "500"}
    name = f"doctor-{os.urandom(3).hex()}"
    with deployed(store.url, name, quiet=True, settings=settings) as found, found.worker("threads", 1):
        yield found


@dataclass(frozen=True)
class Broken:
    """A deployment that is broken.

    Attributes:
        level: How bad it is.
        setting: What of the setting to change the finding names.
        text: What the finding says.
        variables: What is set differently than for the worker.
        config: What is set in Redis.
        user: Rights of the user that the doctor connects as.
        server: Text of the server's module, where it is another.
    """

    level: str
    setting: str
    text: str
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    config: Mapping[str, str] = field(default_factory=dict[str, str])
    user: str | None = None
    server: str | None = None


BROKEN: Final = {
    "a setting that does not exist": Broken(
        "warning", "MCP_CELERY_REDIS_ULR", "did you mean MCP_CELERY_REDIS_URL?", {"MCP_CELERY_REDIS_ULR": "x"}
    ),
    "a setting that is refused": Broken(
        "error", "MCP_CELERY_HEARTBEAT_MS", "valid integer", {"MCP_CELERY_HEARTBEAT_MS": "often"}
    ),
    "a store that is not there": Broken(
        "error", "MCP_CELERY_REDIS_URL", "Redis cannot be used: ConnectionError", {"MCP_CELERY_REDIS_URL": NOWHERE}
    ),
    "a store that evicts": Broken(
        "error",
        "maxmemory-policy noeviction",
        "Redis deletes tasks when its memory is full",
        config={"maxmemory": "1gb", "maxmemory-policy": "allkeys-lru"},
    ),
    "a store that forgets": Broken("warning", "appendonly yes", "appendonly is off", config={"appendonly": "no"}),
    "a user without channels": Broken(
        "error", "docs/redis.md", "may not subscribe to the channels", user="on >PASSWORD ~* resetchannels +@all"
    ),
    "a broker that is not there": Broken(
        "error", "MCP_CELERY_BROKER_URL", "the broker cannot be reached", {"MCP_CELERY_BROKER_URL": NOWHERE}
    ),
    "a result backend that is not there": Broken(
        "error", "MCP_CELERY_RESULT_BACKEND", "does not answer", {"MCP_CELERY_RESULT_BACKEND": NOWHERE}
    ),
    "a result backend that keeps nothing": Broken(
        "error", "MCP_CELERY_RESULT_BACKEND", "cannot hold tasks", {"MCP_CELERY_RESULT_BACKEND": "rpc://"}
    ),
    "a queue of webhooks that no worker consumes": Broken(
        "error",
        "celery -A mcp_celery worker -Q hooks",
        "no worker consumes the queue 'hooks' (MCP_CELERY_WEBHOOK_QUEUE), so no webhook is delivered",
        {"MCP_CELERY_WEBHOOK_QUEUE": "hooks", "MCP_CELERY_WEBHOOK_SECRETS": f"whsec_{'A' * 32}"},
    ),
    "a queue that no worker consumes": Broken(
        "error",
        "celery -A mcp_celery worker",
        "no worker consumes the queue 'another'",
        {"MCP_CELERY_QUEUE": "another"},
    ),
    "a worker with other keys": Broken(
        "error",
        "MCP_CELERY_ENCRYPTION_KEYS",
        "has other encryption keys",
        {"MCP_CELERY_ENCRYPTION_KEYS": KEY.replace("the", "another")},
    ),
    "a worker of another store": Broken(
        "error",
        "MCP_CELERY_KEY_PREFIX of that worker",
        "sends no heartbeat to this store: it uses Redis",
        {"MCP_CELERY_KEY_PREFIX": "elsewhere"},
    ),
    "a worker of another release of the server": Broken(
        "error",
        "the release of the server",
        "no worker has the server's version of: tool:counting",
        server=OTHER_SERVER,
    ),
}


ALWAYS: Final = "a queue that no worker consumes"
"""The one that `make test` runs."""


def examined(deployment: Deployment, spec: str, **variables: str) -> tuple[int, list[dict[str, Any]]]:
    done = subprocess.run(
        [*forked_command("mcp_celery"), "doctor", spec, "--json"],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_SECONDS,
        cwd=ROOT,
        env=deployment.env(**variables),
        check=False,
    )
    assert done.stderr == "", done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_doctor_finds_nothing_wrong_with_a_working_deployment(deployment: Deployment) -> None:
    status, findings = examined(deployment, deployment.spec, MCP_CELERY_FAIR="scope")
    assert [one for one in findings if one["level"] != "ok"] == []
    assert status == 0
    assert {one["area"] for one in findings} == {"settings", "store", "broker", "results", "workers"}
    assert any("same encryption keys" in one["text"] for one in findings)
    assert any("at most 2 jobs (slots of the workers: 1)" in one["text"] for one in findings)


@pytest.mark.parametrize(
    "name", [name if name == ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in BROKEN]
)
def test_the_doctor_names_what_is_broken_and_the_setting(
    deployment: Deployment, store: OwnStore, name: str, tmp_path: Path
) -> None:
    broken, spec, variables = BROKEN[name], deployment.spec, dict(BROKEN[name].variables)
    if broken.server is not None:
        (tmp_path / "other_server.py").write_text(broken.server)
        spec = f"{tmp_path / 'other_server.py'}:server"
    with redis.Redis.from_url(store.url, decode_responses=True) as client:
        before = {name: cast("dict[str, str]", client.config_get(name))[name] for name in broken.config}
        if broken.user is not None:
            client.execute_command("ACL", "SETUSER", "half", *broken.user.split())
            variables |= {
                "MCP_CELERY_REDIS_URL": store.url.replace("unix://", "unix://half:PASSWORD@"),
                "MCP_CELERY_BROKER_URL": store.url,
                "MCP_CELERY_RESULT_BACKEND": store.url,
            }
        try:
            for setting, value in broken.config.items():
                client.config_set(setting, value)
            status, findings = examined(deployment, spec, **variables)
        finally:
            for setting, value in before.items():
                client.config_set(setting, value)
    wrong = [one for one in findings if one["level"] != "ok"]
    found = [one for one in wrong if one["level"] == broken.level and broken.text in one["text"]]
    assert found, findings
    assert broken.setting in found[0]["setting"], found
    assert status == (1 if broken.level == "error" else 0), findings
    assert KEY not in json.dumps(findings)
    assert "PASSWORD" not in json.dumps(findings)


@pytest.mark.slow
def test_the_doctor_prints_lines_for_people(deployment: Deployment) -> None:
    done = subprocess.run(
        [*forked_command("celery"), "-A", "mcp_celery", "mcp", "doctor"],
        capture_output=True,
        text=True,
        timeout=GIVE_UP_SECONDS,
        cwd=ROOT,
        env=deployment.env(MCP_CELERY_SERVER=f"{MODULE}:server", MCP_CELERY_QUEUE="another"),
        check=False,
    )
    *lines, summary = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert summary == "1 error, 0 warnings"
    (wrong,) = [line for line in lines if not line.startswith("ok ")]
    assert wrong.startswith("error   workers  no worker consumes the queue 'another', so these never run: ")
    assert wrong.endswith(" -Q another)") or "(change: MCP_CELERY_SERVER=" in wrong
