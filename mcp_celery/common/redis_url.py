"""Redis URLs in redis-py's form: their parts and options, checked before anything is started.

This module imports no client of Redis, so that settings are checked before one is loaded.
"""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from mcp_celery.common.cluster_url import CLUSTER_SCHEMES, ClusterNodes, flattened_cluster
from mcp_celery.common.sentinel_url import (
    MASTER_NAME,
    SENTINEL_PASSWORD,
    SENTINEL_SCHEMES,
    SENTINEL_SSL,
    SENTINEL_USERNAME,
    Sentinels,
    flattened,
    names_master,
)

Transport = Literal["tcp", "tls", "unix"]
"""How a server is reached."""

SCHEMES: Final[Mapping[str, Transport]] = {
    "redis": "tcp",
    "valkey": "tcp",
    "rediss": "tls",
    "valkeys": "tls",
    "unix": "unix",
}
"""By the scheme of a URL."""
EXPECTED: Final = "expected redis://, rediss://, valkey://, valkeys://, unix://, sentinel:// or redis+cluster://"
DEFAULT_PORT: Final = 6379
_EVERY: Final[frozenset[Transport]] = frozenset({"tcp", "tls", "unix"})
_NETWORK: Final[frozenset[Transport]] = frozenset({"tcp", "tls"})
TLS: Final[frozenset[Transport]] = frozenset({"tls"})
_FALSE: Final = frozenset({"0", "f", "false", "n", "no"})
_TRUE: Final = frozenset({"1", "t", "true", "y", "yes"})
_CERTIFICATES: Final = {
    **{name: name for name in ("required", "optional", "none")},
    **{f"CERT_{name.upper()}": name for name in ("required", "optional", "none")},
}
_PERCENT_ENCODE: Final = "characters such as / ? # @ : of a user name or password must be percent-encoded"


def _seconds(text: str) -> float:
    value = float(text)
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError("expected a number of seconds")
    return value


def _whole_number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError("expected a whole number")
    return value


def _boolean(text: str) -> bool:
    if (word := text.lower()) not in _TRUE | _FALSE:
        raise ValueError("expected true or false")
    return word in _TRUE


def _protocol(text: str) -> int:
    if text not in ("2", "3"):
        raise ValueError("expected 2 or 3")
    return int(text)


def _certificates(text: str) -> str:
    if text not in _CERTIFICATES:
        raise ValueError("expected required, optional or none")
    return _CERTIFICATES[text]


def _tls_version(text: str) -> int:
    return ssl.TLSVersion(int(text)).value


def _verify_flags(text: str) -> list[ssl.VerifyFlags]:
    return [ssl.VerifyFlags[name.strip()] for name in text.strip("[]").split(",")]


@dataclass(frozen=True, slots=True)
class _Option:
    """One option of a URL.

    Attributes:
        read: Reads its value; raises ValueError or KeyError.
        on: The transports that have it.
        by_kombu: Whether it is one of kombu's transport options.
        by_results: Whether Celery's result backend takes it in its URL.
        of_sentinels: Whether it is about Sentinels.
    """

    read: Callable[[str], object]
    on: frozenset[Transport] = _EVERY
    by_kombu: bool = False
    by_results: bool = True
    of_sentinels: bool = False


OPTIONS: Final[Mapping[str, _Option]] = {
    "socket_timeout": _Option(_seconds, by_kombu=True),
    "socket_connect_timeout": _Option(_seconds, by_kombu=True),
    "socket_keepalive": _Option(_boolean, _NETWORK, by_kombu=True),
    "socket_read_size": _Option(_whole_number),
    "retry_on_timeout": _Option(_boolean, by_kombu=True),
    "health_check_interval": _Option(_whole_number, by_kombu=True),
    "client_name": _Option(str, by_kombu=True),
    "max_connections": _Option(_whole_number, by_kombu=True),
    "timeout": _Option(_seconds, by_results=False),
    "protocol": _Option(_protocol),
    "ssl_cert_reqs": _Option(_certificates, TLS),
    "ssl_check_hostname": _Option(_boolean, TLS),
    "ssl_ca_certs": _Option(str, TLS),
    "ssl_ca_path": _Option(str, TLS),
    "ssl_ca_data": _Option(str, TLS),
    "ssl_certfile": _Option(str, TLS),
    "ssl_keyfile": _Option(str, TLS),
    "ssl_password": _Option(str, TLS),
    "ssl_min_version": _Option(_tls_version, TLS),
    "ssl_ciphers": _Option(str, TLS),
    "ssl_include_verify_flags": _Option(_verify_flags, TLS),
    "ssl_exclude_verify_flags": _Option(_verify_flags, TLS),
    MASTER_NAME: _Option(str, of_sentinels=True),
    SENTINEL_USERNAME: _Option(str, of_sentinels=True),
    SENTINEL_PASSWORD: _Option(str, of_sentinels=True),
    SENTINEL_SSL: _Option(_boolean, of_sentinels=True),
}
"""redis-py's options of a URL, except its database and credentials; and those about Sentinels."""
_POOL_OPTIONS: Final = frozenset({"max_connections", "timeout"})
"""Sizes of the pool of records, which waits for a connection. The pools of kombu and Celery fail instead."""
CREDENTIAL_PROVIDER: Final = "credential_provider"
"""kombu's and Celery's option of a URL: what gives a redis-py ``CredentialProvider``, as ``module:attribute``."""
REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("decode_responses", "encoding", "encoding_errors", "legacy_responses"), "records are read as redis-py's bytes"
    ),
    "retry_on_error": "errors cannot be named in a URL",
    **dict.fromkeys(
        ("ssl_validate_ocsp", "ssl_validate_ocsp_stapled", "ssl_ocsp_context", "ssl_ocsp_expected_cert"),
        "redis-py's asyncio client checks no OCSP",
    ),
    CREDENTIAL_PROVIDER: "set MCP_CELERY_REDIS_CREDENTIALS",
}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A Redis URL in parts.

    Attributes:
        transport: How the server is reached.
        host: Its name or address; empty for a Unix socket. Where Sentinels know it, it stands for the master.
        port: Its port; 0 for a Unix socket.
        path: Path of its Unix socket; empty for the network.
        db: Number of the database.
        username: ACL user, None for the default user.
        password: Their password.
        options: Further options by name, as written in the URL; ``ssl_cert_reqs`` is there for each TLS connection.
        sentinels: Which Sentinels know the server; None where the URL names it.
        cluster: Which nodes of a Redis Cluster the URL names; None where it names none. The host is the first of them.
    """

    transport: Transport
    host: str
    port: int
    path: str
    db: int
    username: str | None
    password: str | None = field(repr=False)
    options: Mapping[str, str] = field(repr=False)
    sentinels: Sentinels | None = None
    cluster: ClusterNodes | None = None

    @property
    def address(self) -> tuple[str, int, str]:
        """The identity of a server: host, port and path."""
        return self.host.lower(), self.port, self.path

    @property
    def place(self) -> str:
        """Where the server is, for people."""
        if self.sentinels is not None:
            return f"master {self.sentinels.master} of the Sentinels {self.sentinels.addresses}"
        if self.cluster is not None:
            return f"Cluster with the nodes {self.cluster.addresses}"
        return self.path or f"{self.host}:{self.port}"

    def shares_server_with(self, other: RedisUrl) -> bool:
        """Whether both lead to one server."""
        if self.sentinels is not None and other.sentinels is not None:
            return self.sentinels.shares_master_with(other.sentinels)
        if self.cluster is not None and other.cluster is not None:
            return self.cluster.shares_node_with(other.cluster)
        if (self.sentinels, self.cluster) != (other.sentinels, other.cluster):
            return False
        return self.address == other.address

    @property
    def checks_certificates(self) -> bool:
        """Whether the server has to prove who it is, where it can."""
        return self.options.get("ssl_cert_reqs") != "none"

    def value(self, option: str) -> object:
        """The value of an option that the URL has."""
        return OPTIONS[option].read(self.options[option])

    def without_user(self) -> RedisUrl:
        """The same without user and password."""
        return replace(self, username=None, password=None)

    def without_pool_options(self) -> RedisUrl:
        """The same without the sizes of the pool."""
        return replace(self, options={name: text for name, text in self.options.items() if name not in _POOL_OPTIONS})


def shown_redis_url(url: str) -> str:
    """Where a Redis URL leads, for people: scheme, host or socket, and database, without user, password and options.

    >>> shown_redis_url("rediss://reports:SECRET@cache.example/2?ssl_ca_certs=/etc/ssl/our-ca.pem")
    'rediss://cache.example:6379/2'
    >>> shown_redis_url("unix://:SECRET@/run/redis.sock?db=3")
    'unix:///run/redis.sock?db=3'
    >>> shown_redis_url("sentinel://:SECRET@s1.example,s2.example/mymaster")
    'sentinel://s1.example:26379,s2.example:26379/mymaster/0'

    Raises:
        ValueError: As :func:`parse` does.
    """
    found = parse(url)
    scheme = scheme_of(url)
    if found.sentinels is not None:
        return f"{scheme}://{found.sentinels.addresses.replace(', ', ',')}/{found.sentinels.master}/{found.db}"
    if found.cluster is not None:
        return f"{scheme}://{found.cluster.addresses.replace(', ', ',')}"
    if found.path:
        return f"{scheme}://{found.path}?db={found.db}"
    host = f"[{found.host}]" if ":" in found.host else found.host
    return f"{scheme}://{host}:{found.port}/{found.db}"


def scheme_of(url: str) -> str:
    """The scheme of a URL; empty where it has none."""
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator else ""


def is_redis_url(url: str) -> bool:
    """Whether :func:`parse` reads a URL, and kombu and Celery can use it. They know others: lists, and Sentinels of a
    master that their options name. They know no Redis Cluster.
    """
    scheme = scheme_of(url)
    if scheme in SENTINEL_SCHEMES:
        return scheme != "sentinel" or names_master(url)
    return scheme in SCHEMES and url.count("://") == 1


def parse(url: str, *, for_celery: bool = False) -> RedisUrl:
    """Read a Redis URL as redis-py does, and check each of its options.

    Args:
        url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://``, ``unix://``, ``sentinel://`` or
            ``redis+cluster://``.
        for_celery: Whether it may have the option ``credential_provider``.

    Raises:
        ValueError: It cannot be used. The text names the part or option at fault, never a value: each part may hold a
            piece of a password that is not percent-encoded.
    """
    sentinels: Sentinels | None = None
    if scheme_of(url) in SENTINEL_SCHEMES:
        url, sentinels = flattened(url, _split)
    cluster: ClusterNodes | None = None
    if scheme_of(url) in CLUSTER_SCHEMES:
        url, cluster = flattened_cluster(url, _split)
    transport = SCHEMES.get(scheme_of(url))
    if transport is None:
        raise ValueError(EXPECTED)
    parts, port = _split(url)
    if parts.fragment or (transport != "unix" and "@" in f"{parts.path}{parts.query}"):
        raise ValueError(_PERCENT_ENCODE)
    found = _first_values(parts)
    db, username, password = (found.pop(name, None) for name in ("db", "username", "password"))
    has_tls = transport == "tls" or _has_sentinel_tls(found)
    _check_options(
        found,
        {transport, "tls"} if has_tls else {transport},
        for_celery=for_celery,
        has_sentinels=sentinels is not None,
        may_show_names=password is None and SENTINEL_PASSWORD not in found,
    )
    if sentinels is not None:
        sentinels = _with_options(sentinels, found)
    if transport == "unix":
        host, path = "", unquote(parts.path)
        if parts.hostname or port or not path:
            raise ValueError("the URL of a Unix socket has three slashes and its path: unix:///run/redis.sock")
    else:
        host, path = unquote(parts.hostname or "") or "localhost", ""
    if has_tls:
        found["ssl_cert_reqs"] = _certificates(found.get("ssl_cert_reqs", "required"))
        found.setdefault("ssl_check_hostname", str(found["ssl_cert_reqs"] != "none"))
    number = _db(db if db is not None or transport == "unix" else unquote(parts.path).strip("/"))
    if cluster is not None and number:
        raise ValueError("a Redis Cluster has no database but 0: leave the number out")
    return RedisUrl(
        transport,
        host=host,
        port=0 if transport == "unix" else port or DEFAULT_PORT,
        path=path,
        db=number,
        username=unquote(parts.username or "") or username,
        password=unquote(parts.password or "") or password,
        options=found,
        sentinels=sentinels,
        cluster=cluster,
    )


def _split(url: str) -> tuple[SplitResult, int | None]:
    """The parts of a URL, and its port."""
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may show user name and password
        raise ValueError(f"the URL cannot be parsed; {_PERCENT_ENCODE}") from None
    try:
        return parts, parts.port
    except ValueError:  # its text shows what was taken for the port
        raise ValueError(f"the port is not a number within 0…65535; {_PERCENT_ENCODE}") from None


def _first_values(parts: SplitResult) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(parts.query).items()}


def _db(text: str | None) -> int:
    try:
        return _whole_number(text or "0")
    except ValueError:
        raise ValueError("the database is not a number") from None


def _with_options(sentinels: Sentinels, found: dict[str, str]) -> Sentinels:
    """Take the options about Sentinels from those of a URL."""
    found.pop(MASTER_NAME, None)
    has_tls = found.pop(SENTINEL_SSL, None)
    return replace(
        sentinels,
        has_tls=sentinels.has_tls if has_tls is None else _boolean(has_tls),
        username=found.pop(SENTINEL_USERNAME, None),
        password=found.pop(SENTINEL_PASSWORD, None),
    )


def _has_sentinel_tls(found: Mapping[str, str]) -> bool:
    return found.get(SENTINEL_SSL, "").lower() in _TRUE


def _check_options(
    found: Mapping[str, str],
    transports: Set[Transport],
    *,
    for_celery: bool,
    has_sentinels: bool,
    may_show_names: bool,
) -> None:
    """Check names and values of options.

    Args:
        found: The options.
        transports: How the server and its Sentinels are reached.
        for_celery: As :func:`parse`.
        has_sentinels: Whether the URL names Sentinels.
        may_show_names: Whether an unknown name may be shown. It may be the rest of a password that has an ``&``.
    """
    for name, text in found.items():
        if name == CREDENTIAL_PROVIDER and for_celery:
            continue
        if reason := REFUSED.get(name):
            raise ValueError(f"the option {name} is not supported: {reason}")
        option = OPTIONS.get(name)
        if option is None:
            close = get_close_matches(name, OPTIONS, 1)
            meant = f"; did you mean {close[0]}?" if close else ""
            shown = f"the option {name!a}" if may_show_names else "an option"
            raise ValueError(f"{shown} is unknown{meant}")
        if option.of_sentinels and not has_sentinels:
            raise ValueError(f"the option {name} needs sentinel://")
        if not option.on & transports:
            secure = "rediss+sentinel://, or sentinel_ssl=true" if has_sentinels else "rediss:// or valkeys://"
            needed = secure if option.on == TLS else "a network address, not a Unix socket"
            raise ValueError(f"the option {name} needs {needed}")
        try:
            option.read(text)
        except (ValueError, KeyError) as error:
            expected = str(error) if str(error).startswith("expected") else "its value cannot be read"
            raise ValueError(f"the option {name}: {expected}") from None


def check_files(url: RedisUrl) -> None:
    """Load the certificates and the key that a URL names, as each connection will.

    Raises:
        ValueError: One of them cannot be used; the text names the option and the file.
    """
    if "ssl_cert_reqs" not in url.options:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without the authorities of the system, which take time to load
    for name in ("ssl_ca_certs", "ssl_ca_path"):
        if (path := url.options.get(name)) and not os.access(path, os.R_OK):
            raise ValueError(f"the option {name}: {path} cannot be read")
    file, folder, data = (url.options.get(f"ssl_ca_{what}") for what in ("certs", "path", "data"))
    try:
        if file or folder or data:
            context.load_verify_locations(file, folder, data)
    except OSError:
        raise ValueError(f"the option {'ssl_ca_certs' if file else 'ssl_ca_data'}: it holds no certificate") from None
    certificate, key = url.options.get("ssl_certfile"), url.options.get("ssl_keyfile")
    if certificate is None:
        if key is not None:
            raise ValueError("the option ssl_keyfile needs ssl_certfile")
        return
    try:
        # Without a password OpenSSL would ask the terminal for one.
        context.load_cert_chain(certificate, key, lambda: url.options.get("ssl_password", ""))
    except ssl.SSLError:
        raise ValueError(
            "the options ssl_certfile and ssl_keyfile: not a certificate with its private key, or a key that "
            "ssl_password does not open"
        ) from None
    except OSError as error:
        raise ValueError(f"the options ssl_certfile and ssl_keyfile: {error.strerror}") from None


def is_same_database(one: str, other: str) -> bool:
    """Whether two URLs in redis-py's, kombu's or Celery's spelling lead to one database.

    Args:
        one: A URL; its options are not checked. Where Celery names the master apart, it is in the option
            ``master_name``.
        other: Another one.
    """
    if scheme_of(one) in SENTINEL_SCHEMES and scheme_of(other) in SENTINEL_SCHEMES:
        try:
            (here, sentinels), (there, others) = flattened(one, _split), flattened(other, _split)
        except ValueError:
            return False
        return sentinels.shares_master_with(others) and database_of(here) == database_of(there)
    if scheme_of(one) in CLUSTER_SCHEMES and scheme_of(other) in CLUSTER_SCHEMES:
        try:
            (_, nodes), (_, other_nodes) = flattened_cluster(one, _split), flattened_cluster(other, _split)
        except ValueError:
            return False
        return nodes.shares_node_with(other_nodes)
    return (place := database_of(one)) is not None and place == database_of(other)


def database_of(url: str) -> tuple[tuple[str, int, str], str] | None:
    """The server and the database of a URL in redis-py's, kombu's or Celery's spelling. None: it names no Redis server.

    Args:
        url: The URL; its options are not checked.
    """
    scheme = scheme_of(url)
    if scheme in SENTINEL_SCHEMES or scheme in CLUSTER_SCHEMES:
        return None
    parts, port = _split(url)
    query = _first_values(parts)
    if scheme in ("unix", "redis+socket", "socket"):
        db = query.get("db") or query.get("virtual_host") or "0"
        return ("", 0, unquote(parts.path)), db.strip("/")
    if not is_redis_url(url):
        return None
    db = query.get("db") or parts.path.strip("/") or "0"
    return (unquote(parts.hostname or "localhost").lower(), port or DEFAULT_PORT, ""), db
