"""One URL of Redis Sentinel, as the store, kombu and Celery's result backend read what is made of it."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any, Final

import kombu.transport.redis
import kombu.utils.json
import pytest
import redis
from celery import Celery

from mcp_celery import Settings
from mcp_celery.broker.results import CeleryResults
from mcp_celery.common.redis_translation import broker_settings, redis_py_url, result_settings, sentinel_url
from mcp_celery.common.redis_url import is_redis_url, is_same_database, parse
from mcp_celery.errors import ConfigurationError

TWO: Final = (("one.example", 26_379), ("::1", 7))
KOMBUS: Final = "sentinel://us%40er:p%2Fw@one.example:26379/3;sentinel://us%40er:p%2Fw@[::1]:7/3"
SPELLINGS: Final = [
    "sentinel://us%40er:p%2Fw@one.example,[::1]:7/main/3",
    "redis+sentinel://us%40er:p%2Fw@one.example:26379,[::1]:7/main?db=3",
    "valkey+sentinel://one.example,[::1]:7/3?master_name=main&username=us%40er&password=p%2Fw",
    f"{KOMBUS}?master_name=main",
]


def made(settings: Mapping[str, Any], url: str) -> Any:
    """A pool of redis-py's, as kombu and Celery's result backend make it. It is not connected."""
    app = Celery(set_as_current=False)
    app.conf.update({"broker_url": url, **settings})
    if "result_backend" in settings:
        backend: Any = app.backend
        return backend._get_pool(**backend.connparams)
    with app.connection_for_write() as connection:
        channel: Any = kombu.transport.redis.SentinelChannel.__new__(kombu.transport.redis.SentinelChannel)
        channel.connection = connection.transport
        for name, value in (connection.transport_options or {}).items():
            setattr(channel, name, value)
        return channel._sentinel_managed_pool()


def pools(url: str, provider: str | None = None) -> list[Any]:
    broker = broker_settings(url, credential_provider=provider)
    return [
        made(broker, broker["broker_url"]),
        made(result_settings(url, credential_provider=provider), "memory://"),
    ]


def sentinels_of(pool: Any) -> list[dict[str, Any]]:
    """How a pool connects to each Sentinel."""
    return [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]


@pytest.mark.parametrize("url", SPELLINGS)
class TestSpellings:
    def test_each_spelling_names_sentinels_master_user_and_database(self, url: str) -> None:
        parsed = parse(url)
        assert parsed.sentinels is not None
        assert (parsed.sentinels.hosts, parsed.sentinels.master, parsed.sentinels.has_tls) == (TWO, "main", False)
        assert (parsed.db, parsed.username, parsed.password, parsed.options) == (3, "us@er", "p/w", {})
        assert "p/w" not in repr(parsed)

    def test_kombu_and_celery_find_the_same_sentinels_and_master(self, url: str) -> None:
        for pool in pools(url):
            assert pool.service_name == "main"
            assert [(one["host"], one["port"]) for one in sentinels_of(pool)] == [*TWO]
            found = pool.connection_kwargs
            assert (int(found["db"]), found["username"], found["password"]) == (3, "us@er", "p/w")
            pool.make_connection()

    def test_results_are_known_to_be_with_the_records(self, url: str) -> None:
        app = Celery(set_as_current=False)
        app.conf.update(result_settings(url))
        found = CeleryResults(app, timeout_seconds=1).url
        assert found is not None
        assert is_same_database(found, url)
        theirs = Celery(set_as_current=False)
        theirs.conf.update(result_backend=KOMBUS, result_backend_transport_options={"master_name": "other"})
        found = CeleryResults(theirs, timeout_seconds=1).url
        assert found is not None
        assert not is_same_database(found, url)


@pytest.mark.parametrize("options", ["client_name=ours", "socket_timeout=5&client_name=ours"])
def test_results_are_known_to_be_with_the_records_whatever_options_the_url_has(options: str) -> None:
    url = f"sentinel://one.example,[::1]:7/main?{options}"
    app = Celery(set_as_current=False)
    app.conf.update(result_settings(url))
    found = CeleryResults(app, timeout_seconds=1).url
    assert found is not None
    assert is_same_database(found, url)


def test_a_semicolon_of_a_password_does_not_become_a_sentinel() -> None:
    with pytest.raises(ConfigurationError, match="must be percent-encoded as %3B") as refused:
        Settings.load(redis_url="sentinel://one.example/main?sentinel_password=hush;secret").redis_url  # noqa: B018
    assert "secret" not in str(refused.value)


class TestSecrets:
    URL: Final = "sentinel://:letmein@one.example/main?sentinel_username=guard&sentinel_password=hush%40"

    def test_sentinels_have_a_user_of_their_own(self) -> None:
        parsed = parse(self.URL)
        assert parsed.sentinels is not None
        assert sentinel_url(parsed, parsed.sentinels, "one.example", 7) == "redis://guard:hush%40@one.example:7/0"
        assert redis_py_url(self.URL).startswith("redis://:letmein@")
        for pool in pools(self.URL):
            (found,) = sentinels_of(pool)
            assert found["credential_provider"].get_credentials() == ("guard", "hush@")
            assert "password" not in found or found["password"] is None
            assert pool.connection_kwargs["password"] == "letmein"

    def test_kombu_shows_no_password_of_ours(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MCP_CELERY_REDIS_URL", self.URL)
        settings = Settings.load().celery_broker
        app = Celery(set_as_current=False)
        app.conf.update(settings)
        with app.connection_for_write() as connection:
            shown = kombu.utils.json.dumps(connection.info()) + str(connection.info())
        assert "letmein" not in shown
        assert "hush" not in shown
        found = made(settings, settings["broker_url"]).connection_kwargs
        assert found["credential_provider"].get_credentials() == ("letmein",)

    def test_credentials_that_change_are_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        url = "sentinel://app@one.example,two.example/main/1?socket_timeout=4"
        monkeypatch.setenv("MCP_CELERY_REDIS_URL", url)
        monkeypatch.setenv("MCP_CELERY_REDIS_PASSWORD_FILE", __file__)
        settings = Settings.load()
        found = [
            made(settings.celery_broker, settings.celery_broker_url),
            made(settings.celery_results, "memory://"),
        ]
        for pool in found:
            kwargs = pool.connection_kwargs
            assert isinstance(kwargs["credential_provider"], redis.CredentialProvider)
            assert not {name for name in ("username", "password") if kwargs.get(name)}
            assert float(kwargs["socket_timeout"]) == 4.0
            pool.make_connection()

    def test_another_master_has_other_credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MCP_CELERY_REDIS_URL", "sentinel://one.example/main")
        monkeypatch.setenv("MCP_CELERY_REDIS_PASSWORD_FILE", __file__)
        for url, same in {
            "sentinel://one.example/other": False,
            "redis://one.example:26379": False,
            "sentinel://two.example,ONE.example/main/4": True,
        }.items():
            broker = Settings.load(broker_url=url).celery_broker_url
            assert ("credential_provider" in broker) == same


class TestTls:
    @pytest.mark.parametrize(
        ("url", "servers", "sentinels"),
        [
            ("rediss+sentinel://one.example/main?ssl_ca_certs=/ca.pem", True, True),
            ("valkeys+sentinel://one.example/main?ssl_ca_certs=/ca.pem&sentinel_ssl=false", True, False),
            ("sentinel://one.example/main?ssl_ca_certs=/ca.pem&sentinel_ssl=true", False, True),
        ],
    )
    def test_certificates_of_servers_and_sentinels_are_checked(self, url: str, servers: bool, sentinels: bool) -> None:
        parsed = parse(url)
        assert parsed.sentinels is not None
        for made_for, has_tls in {
            redis_py_url(url): servers,
            sentinel_url(parsed, parsed.sentinels, "one.example", 7): sentinels,
        }.items():
            assert made_for.startswith("rediss://") == ("ssl_ca_certs=%2Fca.pem" in made_for) == has_tls
            assert ("ssl_cert_reqs=required&ssl_check_hostname=True" in made_for) == has_tls
        for pool in pools(url):
            found = pool.connection_kwargs
            assert (found.get("ssl_ca_certs") == "/ca.pem") == servers
            assert issubclass(pool.connection_class, redis.SSLConnection) == servers
            (one,) = pool.sentinel_manager.sentinels
            assert issubclass(one.connection_pool.connection_class, redis.SSLConnection) == sentinels
            (kwargs,) = sentinels_of(pool)
            assert (kwargs.get("ssl_ca_certs") == "/ca.pem") == sentinels
            for checked in [found] * servers + [kwargs] * sentinels:
                assert checked["ssl_cert_reqs"] in ("required", ssl.CERT_REQUIRED)


class TestRefusals:
    @pytest.mark.parametrize(
        ("url", "reason"),
        [
            ("sentinel://one.example", "names no master"),
            ("sentinel://one.example/0", "names no master"),
            ("redis+sentinel://one.example:7/", "names no master"),
            ("sentinel://one.example/main/x", "the database is not a number"),
            ("sentinel://one.example/ma in", "the name of the master"),
            ("sentinel://:letmein/x@one.example/main", "must be percent-encoded"),
            ("sentinel://:letmein,x@one.example:7x/main", "the port is not a number"),
            ("sentinel://one.example,/main", "the address of a Sentinel is empty"),
            ("sentinel://:a@one/0;sentinel://:b@two/0?master_name=main", "different users or passwords"),
            ("sentinel://one/0;sentinel://two/1?master_name=main", "different paths"),
            ("sentinel://one/main?ssl_ca_certs=/ca.pem", "needs rediss+sentinel://, or sentinel_ssl=true"),
            ("sentinel://one/main?sentinel_ssl=perhaps", "expected true or false"),
            ("redis://one/0?sentinel_password=letmein", "the option sentinel_password needs sentinel://"),
            ("sentinel://one/main?sentinel_pasword=letmein", "did you mean sentinel_password?"),
        ],
    )
    def test_an_option_that_cannot_be_used_is_named(self, url: str, reason: str) -> None:
        with pytest.raises(ValueError, match=re.escape(reason)) as error:
            parse(url)
        assert "letmein" not in str(error.value)

    def test_the_setting_with_a_wrong_url_is_named_at_start(self) -> None:
        with pytest.raises(ConfigurationError, match="MCP_CELERY_REDIS_URL: the URL names no master"):
            Settings.load(redis_url="sentinel://one.example;sentinel://two.example")
        with pytest.raises(ConfigurationError, match=r"MCP_CELERY_BROKER_URL: .*sentinel_ssl"):
            Settings.load(broker_url="sentinel://one.example/main?sentinel_ssl=x")

    def test_a_url_whose_master_is_in_celerys_options_is_left_to_celery(self) -> None:
        assert not is_redis_url(KOMBUS)
        assert broker_settings(KOMBUS) == {"broker_url": KOMBUS}
        assert result_settings(KOMBUS) == {"result_backend": KOMBUS}
