"""URLs of Redis Sentinel: the addresses of Sentinels, and the name of the master that they watch.

Two spellings are read:

- ``sentinel://HOST:PORT,HOST:PORT/MASTER/DB``, which Docket and other libraries have too (``redis+sentinel://``);
- kombu's and Celery's list, ``sentinel://HOST:PORT/DB;sentinel://HOST:PORT/DB``, with the option ``master_name``.

Either becomes one ordinary Redis URL, which :mod:`mcp_celery.common.redis_url` reads, and the Sentinels' addresses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, quote, unquote

from mcp_celery.common.url_hosts import Host, Split, have_one_in_common, read_host, shown

SENTINEL_SCHEMES: Final[Mapping[str, bool]] = {
    "sentinel": False,
    "redis+sentinel": False,
    "valkey+sentinel": False,
    "rediss+sentinel": True,
    "valkeys+sentinel": True,
}
"""Schemes, and whether Redis servers and Sentinels are reached over TLS."""
SENTINEL_PORT: Final = 26_379
MASTER_NAME: Final = "master_name"
SENTINEL_USERNAME: Final = "sentinel_username"
SENTINEL_PASSWORD: Final = "sentinel_password"  # noqa: S105 - the name of an option
SENTINEL_SSL: Final = "sentinel_ssl"
NO_MASTER: Final = (
    "the URL names no master: expected sentinel://HOST:PORT,HOST:PORT/MASTER, or kombu's list with ?master_name=MASTER"
)
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_PLACEHOLDER: Final = "master"


@dataclass(frozen=True, slots=True)
class Sentinels:
    """The Sentinels of a URL.

    Attributes:
        hosts: Names or addresses with their ports, in the order of the URL.
        master: The name of the master that they watch.
        has_tls: Whether they are reached over TLS.
        username: ACL user of the Sentinels, None for the default user.
        password: Their password.
    """

    hosts: tuple[Host, ...]
    master: str
    has_tls: bool
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def addresses(self) -> str:
        """Their addresses, for people."""
        return shown(self.hosts)

    def shares_master_with(self, other: Sentinels) -> bool:
        """Whether a Sentinel of both watches one master under this name."""
        return self.master == other.master and have_one_in_common(self.hosts, other.hosts)


def names_master(url: str) -> bool:
    """Whether a ``sentinel://`` URL says which master it is about. kombu's own form leaves that to its options."""
    tails = [_cut(rest)[2] for rest in _pieces(url)]
    return any(parse_qs(tail.partition("?")[2]).get(MASTER_NAME) or _in_path(tail) for tail in tails)


def flattened(url: str, split: Split) -> tuple[str, Sentinels]:
    """One Redis URL with the user, the database and the options of a URL of Sentinels; and the Sentinels.

    Args:
        url: The URL.
        split: Reads addresses.

    Raises:
        ValueError: It cannot be used. The text shows no part of the URL.
    """
    scheme = url.partition("://")[0]
    has_tls = SENTINEL_SCHEMES[scheme.lower()]
    if not all(piece.strip().startswith(f"{scheme}://") for piece in url.split(";") if piece.strip()):
        raise ValueError(
            f"a part of the list, behind a ;, does not begin with {scheme}://; a ; of a user name, password or option "
            "must be percent-encoded as %3B"
        )
    pieces = [_cut(rest) for rest in _pieces(url)]
    user = _only({piece[0] for piece in pieces}, "users or passwords")
    path = _only({piece[2].partition("?")[0].strip("/") for piece in pieces}, "paths")
    query = _only({piece[2].partition("?")[2] for piece in pieces}, "options")
    named = parse_qs(query).get(MASTER_NAME)
    if named:
        master, db = named[0], path
    elif _in_path(f"/{path}"):
        master, _, db = path.partition("/")
        master = unquote(master)
    else:
        raise ValueError(NO_MASTER)
    if not _NAME.fullmatch(master):
        raise ValueError(
            "the name of the master has other characters than letters, digits, . _ and -; characters such as / of a "
            "user name or password must be percent-encoded"
        )
    hosts = tuple(
        read_host(text, split, whose="a Sentinel", default_port=SENTINEL_PORT)
        for piece in pieces
        for text in piece[1].split(",")
    )
    at, options = f"{user}@" if user else "", f"?{query}" if query else ""
    flat = f"{'rediss' if has_tls else 'redis'}://{at}{_PLACEHOLDER}/{quote(db)}{options}"
    return flat, Sentinels(hosts, master, has_tls)


def _pieces(url: str) -> list[str]:
    """The URLs of kombu's list, each without its scheme."""
    scheme = url.partition("://")[0]
    prefix = f"{scheme}://"
    return [piece.strip().removeprefix(prefix) for piece in url.split(";") if piece.strip()]


def _cut(rest: str) -> tuple[str, str, str]:
    """User information, addresses, and what follows them."""
    end = next((at for at, character in enumerate(rest) if character in "/?#"), len(rest))
    user, _, hosts = rest[:end].rpartition("@")
    return user, hosts, rest[end:]


def _in_path(tail: str) -> bool:
    """Whether a path begins with a name: a number is kombu's database."""
    first = tail.partition("?")[0].strip("/").partition("/")[0]
    return bool(first) and not first.isdecimal()


def _only(found: set[str], what: str) -> str:
    """The one value that the parts of a list have, where they have one."""
    given = found - {""}
    if len(given) > 1:
        raise ValueError(f"the URLs of the list have different {what}")
    return given.pop() if given else ""
