"""Flower, as a program asks it."""

from __future__ import annotations

import sys
from base64 import b64encode
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import httpx2

from tests.support.deployment import Deployment, is_listening, process, wait_until
from tests.support.locks import reserve_port

OPERATOR: Final = "operator:flowers"


@dataclass(frozen=True)
class Flower:
    """A running Flower.

    Args:
        port: Where it answers, on this machine.
        operator: ``user:password`` of whoever may press its buttons.
    """

    port: int
    operator: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, path: str) -> httpx2.Response:
        """What Flower answers to a program."""
        credentials = b64encode(self.operator.encode()).decode()
        return httpx2.get(f"{self.url}{path}", headers={"authorization": f"Basic {credentials}"}, timeout=30)

    def get(self, path: str) -> str:
        """The text of an answer that says yes."""
        answer = self.asked(path)
        assert answer.status_code == 200, answer.text
        return answer.text


@contextmanager
def run_flower(deployment: Deployment, *options: str) -> Generator[Flower]:
    """Run a Flower for as long as the context lasts, and begin when it hears of what workers do."""
    flower = Flower(reserve_port(), OPERATOR)
    argv = [sys.executable, "-m", "celery", "-A", "mcp_celery", "flower", f"--port={flower.port}", *options]
    log = deployment.folder / f"flower-{flower.port}.log"
    with process(argv, deployment.env(FLOWER_BASIC_AUTH=flower.operator), log):
        wait_until(lambda: is_listening(flower.port), "Flower listens")
        wait_until(lambda: "flower_worker_online{" in flower.get("/metrics"), "Flower hears of the worker")
        yield flower
