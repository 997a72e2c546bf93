"""Brokers and result backends other than Redis, where this machine has them; else a test is skipped with the reason."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import kombu
import psycopg
import pymysql
import pytest
from psycopg import sql

from tests.support.deployment import is_listening
from tests.support.locks import reserve_port
from tests.support.nodes import NodeError, ProcessContainer, environment, wait_for_ends
from tests.support.waiting import eventually_sync

RABBITMQ: Final = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")
"""Debian's command on PATH is a wrapper that runs the machine's own server."""
RABBITMQ_PORT: Final = 5672
POSTGRESQL: Final = "postgresql://postgres@127.0.0.1:5432"
MARIADB_HOST: Final = "127.0.0.1"
PATIENT_SQLITE: Final = {"connect_args": {"timeout": 60}}
"""``broker_transport_options`` of a database that its other user, who polls it, may hold locked on a busy machine."""


class RabbitProcess(ProcessContainer):
    """A RabbitMQ of one's own, that may be stopped and killed. It keeps its durable queues over a restart.

    Args:
        folder: Where its data are.
        settings: Lines of its ``rabbitmq.conf``.
        ticks_ms: How often it looks for deliveries that were not acknowledged in time.

    Raises:
        NodeError: There is no RabbitMQ to start.
    """

    ready_prompt = "Server startup complete"

    def __init__(self, folder: Path, *, settings: str = "", ticks_ms: int = 60_000) -> None:
        command = next(filter(None, map(shutil.which, RABBITMQ)), None)
        if command is None:
            raise NodeError("no rabbitmq-server on this machine (Debian: apt-get install rabbitmq-server)")
        home = folder / "rabbitmq"
        home.mkdir()
        self._port = reserve_port()
        (home / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{self._port}\n{settings}\n")
        (home / "advanced.config").write_text(f"[{{rabbit, [{{channel_tick_interval, {ticks_ms}}}]}}].\n")
        variables = {
            "HOME": str(home),
            "RABBITMQ_NODENAME": f"mcpc-{uuid.uuid4().hex[:8]}@localhost",
            "RABBITMQ_DIST_PORT": str(reserve_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(home),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "ERL_CRASH_DUMP": str(home / "crash"),
        }
        super().__init__([command], name="rabbitmq", folder=folder, env=environment(**variables))

    def send(self, number: signal.Signals) -> None:
        """To the server as well, whose parent is a shell."""
        os.killpg(self.pid, number)

    def kill(self, signal: str | int = "SIGKILL") -> None:
        super().kill(signal)
        wait_for_ends(self._family)

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"


@contextmanager
def rabbitmq(folder: Path) -> Generator[str]:
    """A RabbitMQ that no test harms: one of our own, else the machine's. Tests find their queues by their namespaces.

    Yields:
        Its URL, for Celery.
    """
    try:
        node = RabbitProcess(folder)
    except NodeError as missing:
        if not is_listening(RABBITMQ_PORT):
            pytest.skip(f"{missing}, and none answers on 127.0.0.1:{RABBITMQ_PORT}")
        yield f"amqp://guest:guest@127.0.0.1:{RABBITMQ_PORT}//"
        return
    try:
        node.start()
        node.ready()
        yield node.url
    finally:
        node.teardown()


@contextmanager
def postgresql() -> Generator[str]:
    """A database of one's own in the machine's PostgreSQL, gone afterwards.

    Yields:
        Its URL, without Celery's ``db+``.
    """
    try:
        server = psycopg.connect(f"{POSTGRESQL}/postgres", autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        pytest.skip(f"no PostgreSQL that lets us in at {POSTGRESQL}: {' '.join(str(error).split())}")
    name = sql.Identifier(database := f"mcp_celery_{uuid.uuid4().hex[:8]}")
    with server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(name))
        try:
            yield f"{POSTGRESQL}/{database}"
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
    server.close()


@contextmanager
def mariadb() -> Generator[str]:
    """A database of one's own in the machine's MariaDB, gone afterwards.

    Yields:
        Its URL, without Celery's ``db+``.
    """
    try:
        server = pymysql.connect(host=MARIADB_HOST, user="root", password="", autocommit=True, connect_timeout=5)
    except pymysql.MySQLError as error:
        pytest.skip(f"no MariaDB that lets root in at {MARIADB_HOST}: {' '.join(str(error).split())}")
    database = f"mcp_celery_{uuid.uuid4().hex[:8]}"
    with server, server.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {database}")
        try:
            yield f"mysql+pymysql://root@{MARIADB_HOST}/{database}"
        finally:
            cursor.execute(f"DROP DATABASE {database}")


def delete_queues(broker_url: str, *names: str) -> None:
    """Take queues of a test out of a RabbitMQ that is not the test's own."""
    with kombu.Connection(broker_url) as connection:
        for name in names:
            kombu.Queue(name, channel=connection.default_channel).delete()


@contextmanager
def memcached(folder: Path, *, most_bytes: int | None = None) -> Generator[str]:
    """A memcached of one's own.

    Args:
        folder: Where its socket is; its path must be short.
        most_bytes: How large a value may be; None for memcached's own limit, 1 MB.

    Yields:
        Its URL, for Celery.
    """
    program = shutil.which("memcached")
    if program is None:
        pytest.skip("no memcached on this machine (Debian: apt-get install memcached)")
    socket = folder / f"memcached-{uuid.uuid4().hex[:8]}"
    options = [] if most_bytes is None else ["-I", str(most_bytes)]
    # Another user than root is asked for where root starts it.
    argv = [program, "-u", getpass.getuser(), "-s", str(socket), *options]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        try:
            eventually_sync(lambda: socket.is_socket() or running.poll() is not None, what="memcached listens")
            assert running.poll() is None, "memcached ended"
            yield f"cache+memcached://{socket}"
        finally:
            running.kill()
            running.wait()
            socket.unlink(missing_ok=True)
