"""``mcp-celery store``: the private store in the foreground; and how the other commands hold one."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mcp_celery.cli.dev.supervisor import StopSignals, Supervisor, unless_interrupted
from mcp_celery.cli.errors import RunError, start_errors
from mcp_celery.embedded import EmbeddedStore, EmbeddedStoreError, default_data_dir
from mcp_celery.settings import ENV_PREFIX
from mcp_celery.store import connect_blocking

REDIS_URL: Final = f"{ENV_PREFIX}REDIS_URL"
CHECK_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 5.0
LEAVE: Final = "import sys, pathlib, mcp_celery.embedded as e; e.EmbeddedStore.open(pathlib.Path(sys.argv[1])).close()"


@contextmanager
def private_store(data_dir: Path) -> Generator[EmbeddedStore]:
    """Hold the private store of a folder.

    Args:
        data_dir: The folder.

    Raises:
        StartError: It cannot be had.
        RunError: It cannot be stopped.
    """
    with start_errors():
        store = EmbeddedStore.open(data_dir)
    try:
        yield store
    finally:
        try:
            store.close()
        except EmbeddedStoreError as error:
            raise RunError(str(error)) from error


def leave_store_command(data_dir: Path) -> tuple[str, ...]:
    """A command that joins the private store of a folder and leaves it again: the last one out stops it.

    For the watchdog: a process that was killed cannot leave, and the store would run on with no one in it.
    """
    return (sys.executable, "-c", LEAVE, str(data_dir))


def ask_store(redis_url: str, credentials: redis.CredentialProvider | None = None) -> None:
    """Ask a store whether it is there.

    Args:
        redis_url: Its URL.
        credentials: Gives user and password. None: those of the URL.

    Raises:
        RedisError: It does not answer, or not to us.
        OSError: It cannot be reached.
        ValueError: The URL cannot be read.
    """
    with connect_blocking(redis_url, timeout_seconds=ANSWER_SECONDS, credentials=credentials) as client:
        client.ping()


async def raise_when_gone(redis_url: str) -> None:
    """Watch over a private store for as long as its process is there, however busy.

    Args:
        redis_url: Its URL.

    Raises:
        RunError: It is gone.
    """
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        try:
            await asyncio.to_thread(ask_store, redis_url)
        except RedisTimeoutError:
            continue
        except (RedisError, OSError) as error:
            raise RunError("the store ended unexpectedly; everything else was stopped") from error


def store(data_dir: Path | None) -> None:
    """Run the private store until a signal comes.

    Args:
        data_dir: Its folder; None: the one of the current folder.
    """
    asyncio.run(_run(data_dir or default_data_dir()))


async def _run(data_dir: Path) -> None:
    with StopSignals() as signals, private_store(data_dir) as held:
        # There is no child to run; it is the watchdog that is wanted, should this process be killed.
        async with Supervisor(_ignore, if_killed=leave_store_command(data_dir)):
            click.echo(f"The store answers at {held.url} (its data is in {data_dir})")
            click.echo(f"  export {REDIS_URL}={shlex.quote(held.url)}")
            click.echo("Ctrl-C stops it.")
            await unless_interrupted(signals.wait(), raise_when_gone(held.url))


def _ignore(_name: str, _line: str) -> None:
    return
