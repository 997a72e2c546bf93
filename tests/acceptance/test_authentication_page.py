"""The server of docs/authentication.md, with tokens of an authorization server that only publishes its keys."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from jwt.algorithms import ECAlgorithm

from tests.support.deployment import ROOT, answering_url, process
from tests.support.wire import Wire, follow

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

RESOURCE: Final = "https://mcp.example.com/mcp"
KEY: Final = generate_private_key(SECP256R1())


@contextmanager
def issuer(key: EllipticCurvePrivateKey) -> Generator[str]:
    """An HTTP server that publishes a public key; gives its address."""
    published = {"keys": [{**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "one", "use": "sig"}]}

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(published).encode()
            self.send_response(200 if self.path == "/.well-known/jwks.json" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base class
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Keys) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def token(iss: str, sub: str, **others: object) -> str:
    """A token as the authorization server issues it for the page's server."""
    now = int(time.time())
    claims: dict[str, object] = {"iss": iss, "sub": sub, "aud": RESOURCE, "exp": now + 600, "azp": "app"}
    return jwt.encode(claims | {"scope": "reports"} | others, KEY, algorithm="ES256", headers={"kid": "one"})


async def test_tokens_are_checked_and_own_their_tasks(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "authentication.md").read_text()
    code = re.search(r'^```python title="guarded.py"\n(.*?)^```', page, re.MULTILINE | re.DOTALL)
    assert code
    (tmp_path / "guarded.py").write_text(code[1])
    serve = [sys.executable, "-m", "mcp_celery", "serve", str(tmp_path / "guarded.py"), "--port", "0"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MCP_CELERY_")}
    with issuer(KEY) as iss:
        env = inherited | {"MCP_CELERY_REDIS_URL": "memory://", "ISSUER": iss, "RESOURCE": RESOURCE}
        with process(serve, env, tmp_path / "log") as child:
            url = answering_url(tmp_path / "log", child)
            async with Wire(url, token=token(iss, "alice")) as alice, Wire(url, token=token(iss, "bob")) as bob:
                task_id = (await alice.create("whose"))["taskId"]
                assert (await follow(alice, task_id))[-1]["result"]["structuredContent"] == {"result": "app|alice"}
                assert (await bob.ask("tasks/get", {"taskId": task_id})).message["error"]["code"] == -32602
            refused = {
                "another server's": token(iss, "alice", aud="https://other.example.com"),
                "an expired one": token(iss, "alice", exp=1),
                "one without the scope": token(iss, "alice", scope="other"),
                "another issuer's": token("https://evil.example", "alice"),
            }
            async with httpx2.AsyncClient() as http:
                statuses = {
                    name: (await http.post(url, json={}, headers={"Authorization": f"Bearer {one}"})).status_code
                    for name, one in refused.items()
                }
                statuses["none"] = (await http.post(url, json={})).status_code
    assert statuses == {**dict.fromkeys(refused, 401), "one without the scope": 403, "none": 401}
