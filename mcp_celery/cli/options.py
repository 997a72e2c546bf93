"""Arguments and options that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from mcp_celery.cli.arguments import parsed_object
from mcp_celery.cli.headers import HEADERS_VARIABLE, Headers, read_headers
from mcp_celery.common.allowed_hosts import host_pattern, origin_pattern

POOLS: Final[Mapping[str, tuple[str, ...]]] = {
    "asyncio": (),
    "prefork": ("--pool", "processes"),
    "threads": ("--pool", "threads"),
    "solo": ("--pool", "solo"),
}
"""What selects a pool on Celery's command line. The asyncio pool is our app's default, chosen by saying nothing.
Celery cannot distinguish `-P prefork`, its own default, from no option; `processes` is another name of that pool."""
MOST_DEFAULT_PROCESSES: Final = 4
"""A development machine has more to do than to hold a worker process a core."""


def default_concurrency(pool: str) -> int | None:
    """How many jobs a development worker runs at a time; None: as the app's configuration says."""
    return None if pool == "asyncio" else min(MOST_DEFAULT_PROCESSES, os.cpu_count() or 1)


def _checked(
    check: Callable[[str], str],
) -> Callable[[click.Context, click.Parameter, Sequence[str]], tuple[str, ...]]:
    def each(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
        checked: list[str] = []
        for value in values:
            try:
                checked.append(check(value))
            except ValueError as error:
                raise click.BadParameter(f"{value!r}: {error}") from error
        return tuple(checked)

    return each


SERVER: Final = click.Argument(["server"], metavar="MODULE[:ATTR]|FILE.py[:ATTR]")
APP_DIR: Final = click.Option(
    ["--app-dir"],
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder in which SERVER is looked for first. Default: the current one.",
)
HOST: Final = click.Option(["--host"], default="127.0.0.1", show_default=True, help="Address to listen on.")
PORT: Final = click.Option(
    ["--port"], type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0: a free one."
)
ALLOWED_HOST: Final = click.Option(
    ["--allowed-host", "allowed_hosts"],
    multiple=True,
    callback=_checked(host_pattern),
    metavar="NAME[:PORT]",
    help="A name by which clients reach the server, besides this machine's loopback and --host; may be repeated. "
    "Requests with another Host are refused; * allows any.",
)
ALLOWED_ORIGIN: Final = click.Option(
    ["--allowed-origin", "allowed_origins"],
    multiple=True,
    callback=_checked(origin_pattern),
    metavar="SCHEME://NAME[:PORT]",
    help="An origin of web pages that may use the server, besides this machine's loopback; may be repeated.",
)


def _proxies(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Addresses and networks with commas between them, or ``*``: uvicorn would take a name, and never find it."""
    for part in (value or "").split(","):
        try:
            if value is not None and value.strip() != "*":
                ip_network(part.strip(), strict=False)
        except ValueError:
            raise click.BadParameter(f"{part.strip()!r} is neither an address nor a network, and not *") from None
    return value


def _prefix(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", value):
        raise click.BadParameter(f"{value!r}: expected a path such as /tools")
    return value.rstrip("/")


UDS: Final = click.Option(
    ["--uds"],
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PATH",
    help="Listen on this Unix socket, for a proxy, instead of --host and --port. Every user who may enter its "
    "folder can connect.",
)
ROOT_PATH: Final = click.Option(
    ["--root-path"],
    default="",
    callback=_prefix,
    metavar="/PREFIX",
    help="What a proxy removes from the beginning of each path before it passes a request on.",
)
FORWARDED_ALLOW_IPS: Final = click.Option(
    ["--forwarded-allow-ips"],
    callback=_proxies,
    metavar="ADDRESSES",
    help="Proxies whose X-Forwarded-For and -Proto headers the server trusts: addresses or networks with commas "
    "between them, or *. Default: FORWARDED_ALLOW_IPS, else this machine's loopback; with --uds, every client.",
)
LOG_CONFIG: Final = click.Option(
    ["--log-config"],
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Logging configuration in a .json, .yaml or .ini file, as uvicorn takes it. Default: text on standard error.",
)
ACCESS_LOG: Final = click.Option(
    ["--access-log"],
    is_flag=True,
    help="Log a line for each HTTP request. A client that polls makes one a second. With --log-config, the level of "
    "its uvicorn.access decides.",
)
DATA_DIR: Final = click.Option(
    ["--data-dir"],
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the private store. Default: one for the current folder, below the user's state folder.",
)
POOL: Final = click.Option(
    ["--pool"], type=click.Choice(list(POOLS)), default="asyncio", show_default=True, help="How the worker runs jobs."
)
CONCURRENCY: Final = click.Option(
    ["--concurrency"],
    type=click.IntRange(min=1),
    help="Jobs that the worker runs at a time. Default: 100 on the asyncio pool, and up to 1,000 while they only wait; "
    f"else the number of processors, at most {MOST_DEFAULT_PROCESSES}.",
)


def _url_or_none(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    return None if value is None else _url(context, parameter, value)


def _url(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """The endpoint: `/mcp` where the URL has no path. A server at the root is named with a slash at the end."""
    if not value.startswith(("http://", "https://")):
        raise click.BadParameter(f"{value!r} is not an http:// or https:// URL")
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as error:
        raise click.BadParameter(f"{value!r}: {error}") from None
    if not parts.hostname:
        raise click.BadParameter(f"{value!r} names no host")
    return value if parts.path else parts._replace(path="/mcp").geturl()


def _headers(_context: click.Context, _parameter: click.Parameter, values: Sequence[str]) -> Headers:
    return read_headers(values)


def _given(
    _context: click.Context, _parameter: click.Parameter, texts: Sequence[str]
) -> tuple[dict[str, Any] | None, bool]:
    return parsed_object(texts)


URL: Final = click.Argument(["url"], callback=_url)
HTTP: Final = click.Option(
    ["--http"], callback=_url_or_none, metavar="URL", help="Where the server runs; without a path, /mcp is meant."
)
HEADER: Final = click.Option(
    ["-H", "--header", "headers"],
    multiple=True,
    callback=_headers,
    metavar="'NAME: VALUE'|@FILE",
    help="Sent with each request. Other users of this machine see the command line: put secrets into a file, one "
    f"header a line, or into the variable {HEADERS_VARIABLE}.",
)
TIMEOUT: Final = click.Option(
    ["--timeout"],
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop waiting after this time; the task continues, and the exit status is 6.",
)
TASK_ID: Final = click.Argument(["task_id"])
MACHINE: Final = click.Option(["--json", "machine"], is_flag=True, help="Print JSON, for machines.")


def json_option(help_text: str) -> click.Option:
    """``--json ['{…}']`` of a `JSONCommand`; the command's body takes what `parsed_object` returns as ``given``."""
    return click.Option(["--json", "given"], multiple=True, callback=_given, metavar="['{…}']", help=help_text)
