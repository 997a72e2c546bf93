"""The client's library uses nothing that only POSIX has, so a program on Windows may use it."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

WITHOUT_POSIX: Final = """
# Other packages ask for the system's name themselves.
import asyncio, mcp.client, mcp.server.stdio, httpx2, pydantic
import os, signal, sys

for name in ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
for name in ("fork", "forkpty", "getpgid", "getuid", "killpg", "register_at_fork", "setsid"):
    delattr(os, name)
for name in ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGWINCH"):
    delattr(signal, name)

import mcp_celery.client

for name in mcp_celery.client.__all__:
    getattr(mcp_celery.client, name)
"""


@pytest.mark.slow
def test_the_client_is_imported_where_there_is_no_posix() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_POSIX], check=True)
