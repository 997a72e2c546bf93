"""The server with tasks, as servers and workers import it. Its tools are of the module that a variable names."""

from __future__ import annotations

import os

from mcp_celery import TaskServer
from tests.differential.plain_server import MODULE_VARIABLE, define

server = TaskServer("differential", task=True, log_level="CRITICAL")
define(server, os.environ[MODULE_VARIABLE])
