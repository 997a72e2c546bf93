"""A store of a test's own, which the test kills, stops and starts again."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import psutil
import redis

from mcp_celery.embedded import EmbeddedStore
from tests.support.waiting import eventually_sync


class OwnStore:
    """A server of the test's own, to be ill-treated."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._holds = ExitStack()
        self._stopped = False
        self._open()

    def _open(self) -> None:
        self.url = self._holds.enter_context(EmbeddedStore.open(self._folder)).url
        with redis.Redis.from_url(self.url) as client:
            self._process = psutil.Process(client.info("server")["process_id"])  # pyright: ignore[reportIndexIssue]

    def kill(self) -> None:
        """As `kill -9` does."""
        self._process.kill()
        eventually_sync(lambda: not self._process.is_running() or self._process.status() == psutil.STATUS_ZOMBIE)

    def start_again(self) -> None:
        """On the same folder."""
        self._open()

    def stop_answering(self) -> None:
        """Connections are taken, and nothing is answered, as under `CLIENT PAUSE`; but only until it is told."""
        os.kill(self._process.pid, signal.SIGSTOP)
        self._stopped = True

    def answer_again(self) -> None:
        if self._stopped:
            os.kill(self._process.pid, signal.SIGCONT)
        self._stopped = False

    def cut_pubsub(self) -> int:
        """Kill every pub/sub connection; returns how many there were."""
        with redis.Redis.from_url(self.url) as client:
            return int(cast(Any, client.client_kill_filter(_type="pubsub")))

    def close(self) -> None:
        self.answer_again()
        self._holds.close()
