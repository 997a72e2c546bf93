"""One Redis URL, as redis-py, kombu and Celery's result backend read what is made of it."""

from __future__ import annotations

import inspect
import re
import ssl
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

import celery.backends.redis
import kombu
import kombu.transport.redis
import kombu.utils.json
import pytest
import redis
import redis.asyncio
from celery import Celery
from redis import connection as blocking_connection
from redis.asyncio import connection as asyncio_connection

from mcp_celery.common.redis_translation import broker_settings, celery_url, redis_py_url, result_settings
from mcp_celery.common.redis_url import OPTIONS, REFUSED, check_files, is_same_database, parse, shown_redis_url
from tests.support.certificates import Authority

CREDENTIALS: Final = "mcp_celery.redis_credentials:celery_credentials"
ADDRESS: Final = ("host", "port", "path", "db", "username", "password")

URLS: Final = [
    "redis://",
    "redis://127.0.0.1:6379/0",
    "redis://cache.example",
    "redis://cache.example/3",
    "redis://cache.example?db=3",
    "redis://cache.example/1?db=3",
    "redis://:pw@cache.example:7/1",
    "redis://user@cache.example/1",
    "redis://us%40er:p%2Fw%3F%23%25%3B%20@cache.example/1",
    "redis://cache.example/0?username=user&password=p%26w",
    "redis://[::1]:7/0",
    "unix:///run/redis.sock",
    "unix:///run/redis.sock?db=2&password=p%20w",
    "unix://user:pw@/run/a%20project%27s%20data/50%25/%C3%BC.sock?db=2",
    "rediss://cache.example/2",
    "rediss://user:pw@cache.example:7/2?ssl_check_hostname=no&ssl_ciphers=DEFAULT",
    "redis://cache.example/0?health_check_interval=30&socket_timeout=5&socket_connect_timeout=2.5&client_name=a%20b",
    "redis://cache.example/0?protocol=2&socket_keepalive=true&retry_on_timeout=yes&socket_read_size=4096",
    "unix:///run/redis.sock?protocol=3&client_name=x&socket_timeout=5&health_check_interval=0",
    "rediss://cache.example/0?ssl_min_version=771&ssl_include_verify_flags=VERIFY_X509_STRICT,VERIFY_X509_TRUSTED_FIRST",
]


def by_redis_py(url: str) -> dict[str, Any]:
    """What a connection of redis-py is made of."""
    return cast("dict[str, Any]", cast(Any, blocking_connection).parse_url(url))


def by_kombu(settings: dict[str, Any]) -> dict[str, Any]:
    """What a connection of kombu's is made of."""
    app = Celery(set_as_current=False)
    app.conf.update(settings)
    with app.connection_for_write() as connection:
        channel: Any = kombu.transport.redis.Channel.__new__(kombu.transport.redis.Channel)
        channel.connection = connection.transport
        for name, value in (connection.transport_options or {}).items():
            setattr(channel, name, value)
        return channel._connparams()


def by_celery(settings: dict[str, Any]) -> dict[str, Any]:
    """What a connection of the result backend is made of."""
    app = Celery(set_as_current=False)
    app.conf.update(settings)
    backend = cast(Any, app.backend)
    assert isinstance(backend, celery.backends.redis.RedisBackend)
    return cast(Any, backend).connparams


def address(found: dict[str, Any]) -> dict[str, Any]:
    """Where a connection goes and as whom, with redis-py's defaults."""
    defaults: dict[str, Any] = {"db": 0}
    if "path" not in found:
        defaults |= {"host": "localhost", "port": 6379}
    return {**defaults, **{name: found[name] for name in ADDRESS if found.get(name) is not None}}


@pytest.mark.parametrize("url", URLS)
class TestTheSameForAll:
    def test_redis_py_finds_in_our_form_what_it_finds_in_theirs(self, url: str) -> None:
        theirs, ours = by_redis_py(url), by_redis_py(redis_py_url(url))
        assert address(ours) == address(theirs)
        secured = {"ssl_cert_reqs": "required", "ssl_check_hostname": True} if url.startswith("rediss") else {}
        rest = {name: value for name, value in theirs.items() if name not in ADDRESS}
        assert {name: value for name, value in ours.items() if name not in ADDRESS} == {**secured, **rest}

    def test_our_options_are_read_as_redis_py_reads_them(self, url: str) -> None:
        theirs, ours = by_redis_py(url), parse(url)
        for name in ours.options.keys() & theirs.keys():
            assert ours.value(name) == theirs[name]

    def test_kombu_finds_the_same_server(self, url: str) -> None:
        assert address(by_kombu(broker_settings(url))) == address(by_redis_py(url))

    def test_the_result_backend_finds_the_same_server(self, url: str) -> None:
        assert address(by_celery(result_settings(url))) == address(by_redis_py(url))

    def test_kombu_gets_the_options_that_it_knows(self, url: str) -> None:
        theirs, found = by_redis_py(url), by_kombu(broker_settings(url))
        known = {*kombu.transport.redis.Channel.from_transport_options} | {one for one in theirs if one[:4] == "ssl_"}
        assert {one: found[one] for one in known & theirs.keys()} == {one: theirs[one] for one in known & theirs.keys()}

    def test_the_result_backend_gets_all_options(self, url: str) -> None:
        theirs, found = by_redis_py(url), by_celery(result_settings(url))
        names = theirs.keys() - {*ADDRESS, "ssl_cert_reqs"}
        assert {one: found[one] for one in names} == {one: theirs[one] for one in names}

    def test_redis_py_kombu_and_celery_can_make_connections_from_the_url(self, url: str) -> None:
        pools: list[Any] = [
            redis.ConnectionPool.from_url(redis_py_url(url, with_pool=False)),
            redis.asyncio.BlockingConnectionPool.from_url(redis_py_url(url)),
            redis.ConnectionPool(**by_kombu(broker_settings(url))),
            redis.ConnectionPool(**by_celery(result_settings(url))),
        ]
        for pool in pools:
            pool.make_connection()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:pw@[::1]:7/1?client_name=x", "redis://[::1]:7/1"),
        ("unix://user:pw@/run/redis.sock?password=pw", "unix:///run/redis.sock?db=0"),
        ("rediss+cluster://user:pw@n1.example,n2.example:7", "rediss+cluster://n1.example:6379,n2.example:7"),
        ("sentinel://:pw@s1.example/2;sentinel://s2.example/2?master_name=m&sentinel_password=pw",
         "sentinel://s1.example:26379,s2.example:26379/m/2"),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_user_password_and_options(url: str, shown: str) -> None:
    assert shown_redis_url(url) == shown


class TestCertificates:
    @pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
    def test_certificates_are_checked_unless_the_url_says_otherwise(self, scheme: str) -> None:
        url = f"{scheme}://cache.example/0"
        assert by_redis_py(redis_py_url(url))["ssl_cert_reqs"] == "required"
        found = by_kombu(broker_settings(url))
        assert (found["ssl_cert_reqs"], found["ssl_check_hostname"]) == ("required", True)
        found = by_celery(result_settings(url))
        assert (found["ssl_cert_reqs"], found["ssl_check_hostname"]) == (ssl.CERT_REQUIRED, True)

    @pytest.mark.parametrize("word", ["none", "CERT_NONE"])
    def test_certificates_are_not_checked_where_the_url_says_so(self, word: str) -> None:
        url = f"rediss://cache.example/0?ssl_cert_reqs={word}"
        assert not parse(url).checks_certificates
        assert by_redis_py(redis_py_url(url))["ssl_cert_reqs"] == "none"
        assert by_kombu(broker_settings(url))["ssl_cert_reqs"] == "none"
        assert by_celery(result_settings(url))["ssl_cert_reqs"] == ssl.CERT_NONE

    def test_every_client_gets_a_path_as_it_is(self, tmp_path: Path) -> None:
        path = f"{tmp_path}/100%25 ours+theirs/ca.pem"
        url = f"rediss://cache.example/0?ssl_ca_certs={quote(path)}"
        assert by_redis_py(redis_py_url(url))["ssl_ca_certs"] == path
        assert by_kombu(broker_settings(url))["ssl_ca_certs"] == path
        assert by_celery(result_settings(url))["ssl_ca_certs"] == path

    def test_files_are_loaded_before_anything_starts(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path / "authority")
        client, other = authority.sign("client", password="letmein"), authority.sign("other")
        broken = tmp_path / "broken.pem"
        broken.write_text("no certificate")

        def refusal(**files: object) -> str:
            query = "&".join(f"{name}={value}" for name, value in files.items())
            with pytest.raises(ValueError, match="the option") as error:
                check_files(parse(f"rediss://cache.example/0?{query}"))
            assert "letmein" not in str(error.value)
            return str(error.value)

        files = {"ssl_certfile": client.certificate, "ssl_keyfile": client.key}
        query = "&".join(f"{name}={value}" for name, value in files.items())
        check_files(parse(f"rediss://h/0?ssl_ca_certs={authority.certificate}&{query}&ssl_password=letmein"))
        check_files(parse(f"rediss://h/0?ssl_ca_data={quote(authority.certificate.read_text())}"))
        assert "ssl_ca_certs: it holds no certificate" in refusal(ssl_ca_certs=broken)
        assert "ssl_ca_data: it holds no certificate" in refusal(ssl_ca_data="nothing")
        assert "ssl_ca_path" in refusal(ssl_ca_path=tmp_path / "nowhere")
        assert "ssl_password does not open" in refusal(**files)
        assert "ssl_password does not open" in refusal(**files, ssl_password="letmein2")
        assert "not a certificate with its private key" in refusal(
            ssl_certfile=client.certificate, ssl_keyfile=other.key
        )
        assert "No such file" in refusal(ssl_certfile=tmp_path / "nowhere", ssl_keyfile=other.key)
        assert "needs ssl_certfile" in refusal(ssl_keyfile=other.key)

    def test_the_password_of_a_key_file_is_in_no_text(self) -> None:
        url = "rediss://cache.example/0?ssl_password=letmein"
        broker, results = broker_settings(url), result_settings(url)
        assert "letmein" not in f"{broker} {results} {kombu.utils.json.dumps([broker, results])}"
        assert by_kombu(broker)["ssl_password"]() == by_celery(results)["ssl_password"]() == "letmein"


class TestOptions:
    def test_each_option_that_redis_py_reads_from_urls_is_known(self) -> None:
        """A new one of redis-py's has to be given its place, or its reason to be refused."""
        known = OPTIONS.keys() | REFUSED.keys() | {"db"}
        modules: list[Any] = [blocking_connection, asyncio_connection]
        parsed: set[str] = {name for module in modules for name in module.URL_QUERY_ARGUMENT_PARSERS}
        assert parsed <= known
        made = [inspect.signature(module.SSLConnection.__init__) for module in modules]
        assert {name for one in made for name in one.parameters if name.startswith("ssl_")} <= known

    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("http://cache.example/0", "expected redis://"),
            ("cache.example:6379", "expected redis://"),
            ("redis://cache.example/reports", "the database is not a number"),
            ("redis://cache.example/0?db=-1", "the database is not a number"),
            ("redis://cache.example/0?socket_timeout=soon", "socket_timeout: its value cannot be read"),
            ("redis://cache.example/0?socket_timeout=nan", "socket_timeout: expected a number of seconds"),
            ("redis://cache.example/0?health_check_interval=1.5", "health_check_interval: its value"),
            ("redis://cache.example/0?socket_keepalive=perhaps", "socket_keepalive: expected true or false"),
            ("redis://cache.example/0?decode_responses=true", "decode_responses is not supported"),
            ("redis://cache.example/0?wait=3", "the option 'wait' is unknown"),
            ("redis://cache.example/0?socket_timout=3", "did you mean socket_timeout?"),
            ("redis://cache.example/0?ssl_ca_certs=/ca.pem", "ssl_ca_certs needs rediss:// or valkeys://"),
            ("rediss://cache.example/0?ssl_cert_reqs=maybe", "expected required, optional or none"),
            ("rediss://cache.example/0?ssl_min_version=1", "ssl_min_version: its value cannot be read"),
            ("rediss://cache.example/0?ssl_include_verify_flags=ALL", "ssl_include_verify_flags: its value"),
            ("rediss://cache.example/0?ssl_validate_ocsp=true", "checks no OCSP"),
            ("unix:///run/redis.sock?socket_keepalive=1", "needs a network address"),
            ("unix://run/redis.sock", "three slashes"),
            ("unix://", "three slashes"),
        ],
    )
    def test_an_option_that_cannot_be_used_is_named(self, url: str, reason: str) -> None:
        with pytest.raises(ValueError, match=re.escape(reason)):
            parse(url)

    def test_sizes_of_the_pool_are_those_of_the_records(self) -> None:
        url = "redis://cache.example/0?max_connections=5&timeout=2"
        assert by_redis_py(redis_py_url(url)) | {"max_connections": 5, "timeout": 2.0} == by_redis_py(redis_py_url(url))
        assert "max_connections" not in by_redis_py(redis_py_url(url, with_pool=False))
        assert "broker_transport_options" not in broker_settings(url, with_pool=False)
        assert broker_settings(url)["broker_transport_options"] == {"max_connections": 5}
        assert result_settings(url, with_pool=False) == {"result_backend": "redis://cache.example:6379/0"}
        assert by_celery(result_settings(url))["max_connections"] == 5


class TestCeleryUrls:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("redis://localhost:6379/1", "redis://localhost:6379/1"),
            ("rediss://localhost/0", "rediss://localhost:6379/0"),
            ("valkey://localhost/0", "redis://localhost:6379/0"),
            ("amqp://guest@localhost//", "amqp://guest@localhost//"),
            ("sentinel://localhost:26379;sentinel://other:26379", "sentinel://localhost:26379;sentinel://other:26379"),
            ("redis://one/0;redis://two/0", "redis://one/0;redis://two/0"),
            ("redis+socket:///run/store.sock?virtual_host=2", "redis+socket:///run/store.sock?virtual_host=2"),
            ("unix:///run/store.sock", "redis+socket:///run/store.sock?virtual_host=0"),
            ("unix:///run/store.sock?db=2", "redis+socket:///run/store.sock?virtual_host=2"),
        ],
    )
    def test_a_redis_has_another_name_and_other_urls_stay(self, url: str, expected: str) -> None:
        assert celery_url(url) == expected
        assert broker_settings(url)["broker_url"] == expected

    @pytest.mark.parametrize("url", ["redis://app@cache.example/1", "unix:///run/redis.sock?db=1"])
    def test_credentials_are_asked_for_each_connection(self, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
        monkeypatch.setenv("MCP_CELERY_REDIS_URL", url)
        monkeypatch.setenv("MCP_CELERY_REDIS_PASSWORD_FILE", "/run/secrets/redis")
        for found in (
            by_kombu(broker_settings(url, credential_provider=CREDENTIALS)),
            by_celery(result_settings(url, credential_provider=CREDENTIALS)),
        ):
            assert isinstance(found["credential_provider"], redis.CredentialProvider)
            assert not {name for name in ("username", "password") if found.get(name)}

    def test_a_provider_of_celerys_own_stays(self) -> None:
        url = "redis://cache.example/0?credential_provider=theirs:Provider"
        assert celery_url(url, credential_provider=CREDENTIALS).endswith("?credential_provider=theirs%3AProvider")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("redis://cache.example", "redis://CACHE.example:6379/0", True),
        ("redis://cache.example?db=2", "rediss://user:pw@cache.example/2?ssl_cert_reqs=none", True),
        ("valkey://cache.example/1", "redis://cache.example/1", True),
        ("redis://cache.example/1", "redis://cache.example/2", False),
        ("redis://cache.example/1", "redis://other.example/1", False),
        ("redis://cache.example:7/1", "redis://cache.example/1", False),
        ("unix:///run/a.sock?db=2&password=pw", "redis+socket://:pw@/run/a.sock?virtual_host=2", True),
        ("unix:///run/a%20b.sock", "socket:///run/a%20b.sock", True),
        ("unix:///run/a.sock", "socket:///run/a.sock?virtual_host=1", False),
        ("redis://cache.example", "db+postgresql://cache.example", False),
        ("redis://cache.example", "sentinel://cache.example", False),
        ("redis://main", "sentinel://cache.example/main", False),
        ("sentinel://a,b:7/main/1", "sentinel://:pw@B:7/1;sentinel://:pw@c/1?master_name=main", True),
        ("redis+sentinel://a/main", "rediss+sentinel://a:26379/main/0?sentinel_password=pw", True),
        ("sentinel://a/main/1", "sentinel://a/main/2", False),
        ("sentinel://a/main", "sentinel://a/other", False),
        ("sentinel://a/main", "sentinel://b/main", False),
        ("sentinel://a/main", "sentinel://a/0", False),
        ("sentinel://a/0", "sentinel://a/0", False),
        ("cache+memory://", "cache+memory://", False),
    ],
)
def test_a_database_is_known_in_each_spelling(one: str, other: str, same: bool) -> None:
    assert is_same_database(one, other) == is_same_database(other, one) == same
