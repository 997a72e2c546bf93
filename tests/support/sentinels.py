"""A master, its replica and three Sentinels, as processes of this machine that a test kills."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import redis

from mcp_celery.embedded import find_store_binary
from tests.support.locks import reserve_port
from tests.support.nodes import ProcessContainer, ValkeyProcess
from tests.support.waiting import eventually_sync

MASTER: Final = "mymaster"
DOWN_AFTER_MS: Final = 2_500
"""After this silence a Sentinel takes the master for dead; as short as a busy machine allows."""
QUORUM: Final = 2


class SentinelProcess(ProcessContainer):
    """A Redis Sentinel.

    Args:
        folder: Where its configuration and its log are.
        name: Names both.
        port: On which it listens.
        master_port: That of the first master.
        lines: Further lines of its configuration.
        binary: The server, None for the machine's own.
    """

    ready_prompt = "+monitor master"

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        port: int,
        master_port: int,
        lines: Sequence[str] = (),
        binary: Path | None = None,
    ) -> None:
        self.port = port
        own = folder / name
        own.mkdir()
        config = own / "sentinel.conf"
        config.write_text(
            "\n".join(
                [
                    *([] if any(line.startswith("tls-port") for line in lines) else [f"port {port}"]),
                    "bind 127.0.0.1",
                    f"dir {own}",
                    f"sentinel monitor {MASTER} 127.0.0.1 {master_port} {QUORUM}",
                    f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}",
                    f"sentinel failover-timeout {MASTER} 4000",
                    *lines,
                    "",
                ]
            )
        )
        super().__init__([str(binary or find_store_binary()), str(config), "--sentinel"], name=name, folder=folder)


class Watched:
    """A master and a replica that Sentinels watch. The first of the servers is the master.

    Args:
        folder: Where everything is kept.
        start: Starts a process, and stops it at the end of the test.
        password: Of the servers' default user.
        sentinel_password: Of the Sentinels' default user.
        binary: The server, None for the machine's own.
        keeps: Whether the servers keep their data over a restart.
        tls: The certificates of servers and Sentinels, as options of their configuration, where all of them speak TLS.
    """

    def __init__(
        self,
        folder: Path,
        start: Callable[[ProcessContainer], None],
        *,
        password: str | None = None,
        sentinel_password: str | None = None,
        binary: Path | None = None,
        keeps: bool = False,
        tls: Mapping[str, str] | None = None,
    ) -> None:
        self._password = password
        self._sentinel_password = sentinel_password
        secret = {} if password is None else {"requirepass": password, "masterauth": password}
        self._tls = {} if tls is None else {**tls, "tls-replication": "yes"}
        self._tls.pop("tls-port", None)
        listens = "port" if tls is None else "tls-port"
        lines = [f"{name} {value}" for name, value in self._tls.items()]
        if password is not None:
            lines.append(f'sentinel auth-pass {MASTER} "{password}"')
        if sentinel_password is not None:
            lines.append(f'requirepass "{sentinel_password}"')
        of_all = {"bind": "127.0.0.1", "repl-diskless-sync-delay": 0, **secret, **self._tls}
        self.ports = [reserve_port(), reserve_port()]
        self.servers = [
            ValkeyProcess(
                folder,
                name=f"server-{number}",
                binary=binary,
                options={
                    listens: port,
                    "appendonly": "yes" if keeps else "no",
                    "appenddirname": f"appended-{number}",
                    "dbfilename": f"dump-{number}.rdb",
                    **of_all,
                },
            )
            for number, port in enumerate(self.ports)
        ]
        for server in self.servers:
            start(server)
        with self.admin(1) as replica:
            replica.replicaof("127.0.0.1", self.ports[0])
        eventually_sync(self._is_following, what="the replica follows the master")
        self.sentinels = [
            SentinelProcess(
                folder,
                name=f"sentinel-{number}",
                port=(port := reserve_port()),
                master_port=self.ports[0],
                binary=binary,
                lines=[*lines, *(() if tls is None else ("port 0", f"tls-port {port}"))],
            )
            for number in range(3)
        ]
        for sentinel in self.sentinels:
            start(sentinel)
        eventually_sync(self._is_watched, what="the Sentinels know each other and the replica")

    @property
    def addresses(self) -> list[str]:
        """The addresses of the Sentinels."""
        return [f"127.0.0.1:{one.port}" for one in self.sentinels]

    @property
    def url(self) -> str:
        """Both servers by their Sentinels, without any secret."""
        return f"sentinel://{','.join(self.addresses)}/{MASTER}"

    def admin(self, number: int) -> Any:
        """A client of a server, over its Unix socket."""
        url = self.servers[number].url
        return redis.Redis.from_url(url, password=self._password, decode_responses=True)

    def ask(self, number: int) -> Any:
        """A client of a Sentinel."""
        return redis.Redis(
            host="127.0.0.1",
            port=self.sentinels[number].port,
            password=self._sentinel_password,
            decode_responses=True,
            ssl=bool(self._tls),
            ssl_ca_certs=self._tls.get("tls-ca-cert-file"),
        )

    def master(self) -> int:
        """Which server is the master, as the first Sentinel says."""
        with self.ask(0) as client:
            return self.ports.index(int(client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", MASTER)[1]))

    def _is_following(self) -> bool:
        with self.admin(1) as client:
            return client.info("replication").get("master_link_status") == "up"

    def _is_watched(self) -> bool:
        for number in range(len(self.sentinels)):
            with self.ask(number) as client:
                found = client.sentinel_master(MASTER)
                if found["num-other-sentinels"] < 2 or found["num-slaves"] < 1:
                    return False
                # A Sentinel fails over to no replica whose link it has not seen.
                if any(one["master-link-status"] != "ok" for one in client.sentinel_slaves(MASTER)):
                    return False
        return True
