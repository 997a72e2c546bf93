"""One Redis URL in the forms of redis-py, kombu and Celery's result backend.

Each of the three reads URLs in its own way. kombu takes no options in the URL of a TCP connection and checks no
certificates by default; Celery refuses a TLS connection without ``ssl_cert_reqs``. So one URL is translated here:

- for redis-py: :func:`redis_py_url`;
- for kombu: :func:`broker_settings`, with options in Celery's ``broker_transport_options`` and ``broker_use_ssl``;
- for Celery's result backend: :func:`result_settings`, with everything in the URL that is no secret.

Where Sentinels know the server, kombu and Celery take a list of their addresses, and the name of the master and what
opens connections to the Sentinels among the options of the transport; redis-py gets the URL of each Sentinel
(:func:`sentinel_url`).

This module imports none of the three, so that settings are checked before one is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote, urlencode

from mcp_celery.common.redis_url import CREDENTIAL_PROVIDER, OPTIONS, TLS, RedisUrl, Transport, is_redis_url, parse
from mcp_celery.common.sentinel_url import MASTER_NAME, Sentinels

SENTINEL_SECONDS: Final = 1.0
"""How long a Sentinel may take to answer; then the next one is asked."""
SENTINEL_RESULTS: Final = "mcp_celery.broker.sentinel_results:SentinelResults"
"""Celery's result backend for Sentinel, with the options of its URL and credentials that change."""
_SCHEME_OF: Final[Mapping[Transport, str]] = {"tcp": "redis", "tls": "rediss", "unix": "unix"}
_DECODED_TWICE: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
"""Values that Celery's result backend unquotes after they were decoded with the query."""


class KeyPassword:
    """The password of a client certificate's private key, as OpenSSL asks for it.

    kombu shows the options of TLS to everyone who may inspect a worker, in JSON. So this is no text.

    Args:
        password: The password.
    """

    def __init__(self, password: str) -> None:
        self._password = password

    def __call__(self) -> str:
        """The password."""
        return self._password

    def __json__(self) -> str:
        """What kombu's JSON holds of it."""
        return "**"


class SentinelUser:
    """User and password of the Sentinels, as redis-py's blocking client asks a ``CredentialProvider`` for them.

    kombu shows the options of its transport, as :class:`KeyPassword` says.

    Args:
        sentinels: Whose they are. They have a password.
    """

    def __init__(self, sentinels: Sentinels) -> None:
        self._sentinels = sentinels

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """The password; or the user and the password."""
        username, password = self._sentinels.username, self._sentinels.password or ""
        return (password,) if username is None else (username, password)

    def __json__(self) -> str:
        """What kombu's JSON holds of it."""
        return "**"


def redis_py_url(url: str, *, with_pool: bool = True, with_user: bool = True) -> str:
    """A Redis URL for redis-py's ``from_url``.

    >>> redis_py_url("valkeys://cache.example/2")
    'rediss://cache.example:6379/2?ssl_cert_reqs=required&ssl_check_hostname=True'

    Args:
        url: The URL.
        with_pool: Whether the sizes of the pool are wanted (``max_connections``, ``timeout``).
        with_user: Whether user and password are wanted. redis-py takes none beside a ``CredentialProvider``.

    Returns:
        The URL. Where Sentinels know the server, its host stands for the master's address.

    Raises:
        ValueError: As :func:`parse`.
    """
    parsed = parse(url) if with_pool else parse(url).without_pool_options()
    parsed = parsed if with_user else parsed.without_user()
    if parsed.transport == "unix":
        return f"unix://{_user_info(parsed)}{quote(parsed.path)}{_query({'db': str(parsed.db), **parsed.options})}"
    return _network_url(parsed, _options(parsed))


def sentinel_url(url: RedisUrl, sentinels: Sentinels, host: str, port: int) -> str:
    """Where one Sentinel is, for redis-py's ``from_url``.

    Args:
        url: The URL that names it, with the options of TLS.
        sentinels: The URL's.
        host: The Sentinel's name or address.
        port: Its port.
    """
    names = ("protocol", *_tls_options(url)) if sentinels.has_tls else ("protocol",)
    own = replace(
        url,
        transport="tls" if sentinels.has_tls else "tcp",
        host=host,
        port=port,
        db=0,
        username=sentinels.username,
        password=sentinels.password,
    )
    return _network_url(own, {name: url.options[name] for name in names if name in url.options})


def node_url(url: RedisUrl, host: str, port: int, *, with_user: bool) -> str:
    """Where one node of a Redis Cluster is, for redis-py's ``from_url``.

    Args:
        url: The URL that names some of its nodes, with user, password and the options of TLS.
        host: The node's name or address.
        port: Its port.
        with_user: Whether user and password are wanted.
    """
    names = ("protocol", *_tls_options(url))
    own = replace(url if with_user else url.without_user(), host=host, port=port)
    return _network_url(own, {name: url.options[name] for name in names if name in url.options})


def celery_url(url: str, *, credential_provider: str | None = None) -> str:
    """Where a Redis database is, as kombu and Celery spell it, without options; other URLs stay as they are.

    >>> celery_url("unix:///run/store.sock?db=2")
    'redis+socket:///run/store.sock?virtual_host=2'
    >>> celery_url("amqp://guest@localhost//")
    'amqp://guest@localhost//'

    Args:
        url: redis-py's form or any other broker's.
        credential_provider: Gives the credentials, as ``module:attribute``, in place of the URL's own.

    Raises:
        ValueError: As :func:`parse`.
    """
    if not is_redis_url(url):
        return url
    parsed = parse(url, for_celery=True)
    return _celery_url(parsed, _provider(parsed, credential_provider))


def broker_settings(url: str, *, credential_provider: str | None = None, with_pool: bool = True) -> dict[str, Any]:
    """Celery's settings of a broker.

    Args:
        url: redis-py's form or any other broker's.
        credential_provider: As :func:`celery_url`.
        with_pool: Whether ``max_connections`` of the URL holds for kombu's pool.

    Returns:
        ``broker_url``; for Redis also ``broker_transport_options`` and ``broker_use_ssl``, where there are any. kombu
        has no option for the RESP version (``protocol``) and none for ``socket_read_size``.

    Raises:
        ValueError: As :func:`parse`.
    """
    found: dict[str, Any] = {"broker_url": celery_url(url, credential_provider=credential_provider)}
    if not is_redis_url(url):
        return found
    parsed = parse(url, for_celery=True)
    parsed = parsed if with_pool else parsed.without_pool_options()
    known = [name for name in parsed.options if name in OPTIONS]
    transport_options = {name: parsed.value(name) for name in known if OPTIONS[name].by_kombu}
    if transport_options := {**transport_options, **_options_of_sentinels(parsed)}:
        found["broker_transport_options"] = transport_options
    if parsed.transport == "tls":
        found["broker_use_ssl"] = _tls_values(parsed)
    return found


def result_settings(url: str, *, credential_provider: str | None = None, with_pool: bool = True) -> dict[str, Any]:
    """Celery's settings of a result backend.

    Args:
        url: redis-py's form or any other result backend's.
        credential_provider: As :func:`celery_url`.
        with_pool: Whether ``max_connections`` of the URL holds for Celery's pool.

    Returns:
        ``result_backend``, a URL with all options; and ``redis_backend_use_ssl`` with what opens the key of a client
        certificate, which ``celery report`` would show in the URL. Where Sentinels know the server, all options of TLS
        are there, and ``result_backend_transport_options`` has the name of the master.

    Raises:
        ValueError: As :func:`parse`.
    """
    if not is_redis_url(url):
        return {"result_backend": url}
    parsed = parse(url, for_celery=True)
    parsed = parsed if with_pool else parsed.without_pool_options()
    options = {
        name: text.replace("%", "%25") if name in _DECODED_TWICE else text
        for name, text in parsed.options.items()
        if name in OPTIONS and OPTIONS[name].by_results
    }
    found: dict[str, Any] = {}
    if parsed.sentinels is not None:
        options = {name: text for name, text in options.items() if OPTIONS[name].on != TLS}
        found["result_backend_transport_options"] = _options_of_sentinels(parsed)
        if parsed.transport == "tls":
            found["redis_backend_use_ssl"] = _tls_values(parsed)
        listed = _celery_url(parsed, {**options, **_provider(parsed, credential_provider)})
        return {"result_backend": f"{SENTINEL_RESULTS}+{listed}", **found}
    if password := options.pop("ssl_password", None):
        found["redis_backend_use_ssl"] = {"ssl_password": KeyPassword(password)}
    return {"result_backend": _celery_url(parsed, {**options, **_provider(parsed, credential_provider)}), **found}


def _options(url: RedisUrl) -> Mapping[str, str]:
    """The options of the server: those of TLS may be only its Sentinels'."""
    tls = set[str]() if url.transport == "tls" else {*_tls_options(url)}
    return {name: text for name, text in url.options.items() if name not in tls}


def _tls_options(url: RedisUrl) -> list[str]:
    return [name for name in url.options if name in OPTIONS and OPTIONS[name].on == TLS]


def _tls_values(url: RedisUrl) -> dict[str, object]:
    """The options of TLS as kombu and Celery take them apart from a URL."""
    found = {name: url.value(name) for name in _tls_options(url)}
    if password := url.options.get("ssl_password"):
        found["ssl_password"] = KeyPassword(password)
    return found


def _options_of_sentinels(url: RedisUrl) -> dict[str, Any]:
    """Options of Sentinels for kombu's transport and Celery's result backend, besides the addresses."""
    sentinels = url.sentinels
    if sentinels is None:
        return {}
    # Without `retry`, redis-py would ask a Sentinel that is gone ten times more, with pauses.
    own: dict[str, Any] = {
        "socket_timeout": SENTINEL_SECONDS,
        "socket_connect_timeout": SENTINEL_SECONDS,
        "retry": None,
    }
    if sentinels.password is not None:
        own[CREDENTIAL_PROVIDER] = SentinelUser(sentinels)
    if sentinels.has_tls:
        own |= {"ssl": True, **_tls_values(url)}
    return {MASTER_NAME: sentinels.master, "sentinel_kwargs": own}


def _provider(url: RedisUrl, given: str | None) -> dict[str, str]:
    provider = url.options.get(CREDENTIAL_PROVIDER, given)
    return {} if provider is None else {CREDENTIAL_PROVIDER: provider}


def _celery_url(url: RedisUrl, options: Mapping[str, str]) -> str:
    bare = url.without_user() if CREDENTIAL_PROVIDER in options else url
    if url.transport == "unix":
        query = _query({"virtual_host": str(url.db), **options})
        return f"redis+socket://{_user_info(bare)}{quote(url.path)}{query}"
    if url.sentinels is not None:
        return ";".join(
            f"sentinel://{_user_info(bare)}{_host(host)}:{port}/{url.db}{_query(options)}"
            for host, port in url.sentinels.hosts
        )
    return _network_url(bare, options)


def _network_url(url: RedisUrl, options: Mapping[str, str]) -> str:
    where = f"{_user_info(url)}{_host(url.host)}:{url.port}/{url.db}"
    return f"{_SCHEME_OF[url.transport]}://{where}{_query(options)}"


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else quote(host)


def _user_info(url: RedisUrl) -> str:
    if not (url.username or url.password):
        return ""
    password = "" if url.password is None else f":{quote(url.password, safe='')}"
    return f"{quote(url.username or '', safe='')}{password}@"


def _query(options: Mapping[str, str]) -> str:
    return f"?{urlencode(options, quote_via=quote)}" if options else ""
