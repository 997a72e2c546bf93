"""The tools as tasks on FastMCP 4, as its documentation says. Runs in the venv that ``bench/peer.py`` makes."""

# Its package for tasks is not a dependency of this project, so its types are unknown here.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import sys

from fastmcp import FastMCP
from fastmcp_tasks import TasksExtension

from bench.apps.tools import TOOLS

server = FastMCP("bench")
server.add_extension(TasksExtension())
for tool in TOOLS:
    server.tool(task=True)(tool)

if __name__ == "__main__":
    server.run(transport="http", host="127.0.0.1", port=int(sys.argv[1]), show_banner=False)
