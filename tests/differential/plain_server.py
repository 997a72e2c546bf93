"""The plain server: ``python -m tests.differential.plain_server MODULE``. It answers at a port of its own choice."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import uvicorn
from mcp.server import MCPServer

MODULE_VARIABLE = "DIFFERENTIAL_MODULE"
PATH = "/mcp"


def define(server: MCPServer[Any], path: str) -> MCPServer[Any]:
    """Add the tools of a module to a server. Those that it refuses are left out."""
    spec = importlib.util.spec_from_file_location("differential_tools", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for name, function, options in module.TOOLS:
        try:
            server.add_tool(function, name=name, **options)
        except Exception as error:  # noqa: BLE001 - what a server refuses
            print("refused:", name, repr(error))  # noqa: T201 - in the log of a failing test
    return server


class Announcing(uvicorn.Server):
    """Says where it answers."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        print(f"answers at http://127.0.0.1:{port}{PATH}", flush=True)  # noqa: T201 - the test reads it


def main() -> None:
    server = define(MCPServer("differential", log_level="CRITICAL"), sys.argv[1])
    Announcing(uvicorn.Config(server.streamable_http_app(streamable_http_path=PATH), port=0, log_level="warning")).run()


if __name__ == "__main__":
    main()
