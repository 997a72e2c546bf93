"""A host whose messages are signed with Celery's ``auth`` serializer: ours are signed too, and others are refused."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from mcp_celery.common.redis_translation import celery_url
from tests.support.deployment import Deployment, deployed
from tests.support.nodes import EmbeddedStoreContainer
from tests.support.waiting import eventually, soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

APP = "tests.support.signed_host"
JOB_SECONDS = 120.0


def make_certificate(folder: Path, name: str) -> None:
    """Write a key, and a certificate that it has signed itself."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, SHA256())
    )
    written = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (folder / f"{name}.key").write_bytes(written)
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))


@dataclass
class Project:
    """A deployment of theirs."""

    name: str
    deployment: Deployment
    url: str

    def worker_log(self) -> str:
        return "".join(text for name, text in self.deployment.logs().items() if "worker" in name)


@pytest.fixture(scope="module", params=[{}, {"MCP_CELERY_ENCRYPTION_KEYS": "k" * 32}], ids=["plain", "sealed"])
def project(
    request: pytest.FixtureRequest, store: EmbeddedStoreContainer, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Project]:
    folder = tmp_path_factory.mktemp("security")
    make_certificate(folder, "host")
    name = f"signed-{os.urandom(3).hex()}"
    settings = {
        "HOST_NAME": name,
        "HOST_BROKER": celery_url(store.url),
        "HOST_SECURITY": str(folder),
        "MCP_CELERY_NAMESPACE": name,
        "MCP_CELERY_KEY_PREFIX": f"mcp_celery:{name}",
        **request.param,
    }
    with ExitStack() as stack:
        deployment = stack.enter_context(
            deployed(store.url, name, spec=f"{APP}.mcp:server", settings=settings, app=APP)
        )
        stack.enter_context(deployment.worker("threads", concurrency=2))
        yield Project(name, deployment, deployment.serve())


@pytest.fixture
async def wire(project: Project) -> AsyncGenerator[Wire]:
    async with Wire(project.url) as connected:
        yield connected


async def ended(wire: Wire, tool: str, **arguments: Any) -> dict[str, Any]:
    """How a task ends."""
    task_id = (await wire.create(tool, **arguments))["taskId"]
    return (await soon(follow(wire, task_id), seconds=JOB_SECONDS))[-1]


@pytest.mark.smoke
@pytest.mark.shows("C9")
async def test_tools_and_the_hosts_own_jobs_run(wire: Wire, tmp_path: Path) -> None:
    assert (await ended(wire, "add", a=2, b=3))["result"]["structuredContent"] == {"result": 5}
    assert (await ended(wire, "count", words=["a", "b"]))["result"]["structuredContent"] == {"result": 2}
    refused = await ended(wire, "refuse")
    assert (refused["status"], refused["error"]["data"]) == ("failed", {"gear": 7})
    tried_again = await ended(wire, "fails_at_first", path=str(tmp_path / "tried"))
    assert tried_again["result"]["structuredContent"] == {"result": "at last"}


@pytest.mark.shows("C9")
async def test_a_running_job_is_cancelled(wire: Wire, tmp_path: Path) -> None:
    path = tmp_path / "gate"
    task_id = (await wire.create("hold", path=str(path)))["taskId"]
    await eventually(lambda: Path(f"{path}.held").exists(), what="the job has begun", seconds=JOB_SECONDS)
    await wire.ask("tasks/cancel", {"taskId": task_id})
    await eventually(lambda: Path(f"{path}.cancelled").exists(), what="the tool is cancelled", seconds=JOB_SECONDS)
    assert (await wire.get(task_id))["status"] == "cancelled"


@pytest.mark.shows("C9")
async def test_a_message_that_is_not_signed_is_refused(project: Project, wire: Wire) -> None:
    with Celery("forger", broker=project.deployment.settings["HOST_BROKER"], set_as_current=False) as forger:
        arguments = {"key": f"anon:{'x' * 43}:tool:add", "attempt": 1, "leg": 1}
        job, queue = f"mcp.{project.name}.tool.add", f"mcp.{project.name}"
        forger.send_task(job, kwargs=arguments, queue=queue, ignore_result=True)
    await eventually(lambda: "Refusing to deserialize untrusted content" in project.worker_log(), seconds=JOB_SECONDS)
    assert (await ended(wire, "add", a=1, b=1))["status"] == "completed"
