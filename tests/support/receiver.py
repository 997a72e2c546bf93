"""A receiver of webhooks, which verifies each as Standard Webhooks' own library does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

import standardwebhooks

from tests.support.http_server import LocalServer

SECRET: Final = "whsec_" + "QUFB" * 8
OLD_SECRET: Final = "whsec_" + "QkJC" * 8


@dataclass(frozen=True)
class Received:
    """A webhook, as it came.

    Attributes:
        id: Its id.
        path: Where it came to.
        headers: Its headers, in lower case.
        body: Its body.
    """

    id: str
    path: str
    headers: dict[str, str]
    body: bytes

    def verified_with(self, secret: str) -> dict[str, Any]:
        """What it tells. Raises ``WebhookVerificationError`` where it is not signed with the secret."""
        return standardwebhooks.Webhook(secret).verify(self.body, self.headers)

    @property
    def told(self) -> dict[str, Any]:
        """What it tells of a task."""
        return json.loads(self.body)["data"]


@dataclass
class Receiver:
    """What has come, and what is answered.

    Attributes:
        url: Where it listens.
        received: What has come, whatever the answer was.
        answer: Gives the HTTP status, and further headers, of each answer. It may block.
    """

    url: str = ""
    received: list[Received] = field(default_factory=list[Received])
    answer: Callable[[Received], tuple[int, dict[str, str]]] = lambda _: (204, {})

    def ids(self) -> list[str]:
        return [one.id for one in self.received]


@contextmanager
def receiving() -> Generator[Receiver]:
    """A receiver, in threads of this process."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            webhook = Received(headers["webhook-id"], self.path, headers, body)
            receiver.received.append(webhook)
            status, further = receiver.answer(webhook)
            try:
                self.send_response(status)
                for name, value in {"content-length": "0", **further}.items():
                    self.send_header(name, value)
                self.end_headers()
            except OSError:
                pass  # it was killed meanwhile, or has waited long enough

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            """Log nothing."""

    with LocalServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        receiver.url = f"http://127.0.0.1:{server.server_port}/in/s3cret"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
