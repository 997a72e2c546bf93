"""The settings: whatever is wrong is said at start, by the variable's name, and never with what it holds."""

from collections.abc import Callable

import pytest

from mcp_celery.errors import ConfigurationError
from mcp_celery.settings import ENV_PREFIX, Settings

SECRET = "s3cret-pa55word"
WEBHOOK_SECRET = "whsec_" + "QUFB" * 8
KEY = "a-key-of-more-than-32-bytes-for-tests-alone"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the developer has set."""
    for field in Settings.model_fields:
        monkeypatch.delenv(ENV_PREFIX + field.upper(), raising=False)


Refusal = Callable[[str, str], str]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """Set a variable, and give the message with which it is refused."""

    def refuse(name: str, value: str) -> str:
        monkeypatch.setenv(ENV_PREFIX + name, value)
        with pytest.raises(ConfigurationError) as error:
            Settings.load()
        return str(error.value)

    return refuse


NUMBERS = [
    "DEFAULT_TTL_MS", "MAX_TTL_MS", "POLL_INTERVAL_MS", "PROGRESS_INTERVAL_MS", "STORE_TIMEOUT_MS",
    "PUBLISH_TIMEOUT_MS", "REDIS_MAX_CONNECTIONS", "MAX_LISTEN_TASKS", "MAX_TASKS_PER_SCOPE", "MAX_QUEUE_LENGTH",
    "MAX_RUNNING_PER_SCOPE", "IDLE_CONNECTION_MS", "MAX_PENDING_REQUESTS", "LOST_AFTER_MS",
    "WEBHOOK_TIMEOUT_MS", "WEBHOOK_RETRY_SECONDS",
    "MAX_FAILED_LOOKUPS_PER_MINUTE", "MAX_ARGUMENT_BYTES", "MAX_STORED_BYTES_PER_SCOPE", "MAX_STORE_MEMORY_PERCENT",
    "MAX_STREAMS", "MAX_STREAMS_PER_SCOPE", "HTTP_MAX_HEADER_BYTES", "HTTP_MAX_HEADERS", "HTTP_MAX_BODY_BYTES",
    "HTTP_MAX_UNFINISHED_BYTES", "HTTP_RECEIVE_TIMEOUT_MS", "HTTP_MAX_CONNECTIONS",
    "HTTP_MAX_SESSIONS", "HTTP_SESSION_IDLE_SECONDS", "HEALTH_PORT", "WORKER_HEALTH_PORT",
]  # fmt: skip


class TestRefusals:
    @pytest.mark.parametrize("name", NUMBERS)
    @pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5"])
    def test_a_number_that_is_none_or_not_positive_names_its_variable(
        self, refusal: Refusal, name: str, value: str
    ) -> None:
        assert refusal(name, value).startswith(f"MCP_CELERY_{name}: ")

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("FOREGROUND", "client", "'server' or 'worker'"),
            ("CREATE_RATE_PER_SCOPE", "10/fortnight", "expected a number from 0.01 to 10000, or one with /s, /m or /h"),
            ("CREATE_RATE_PER_SCOPE", "0", "expected a number from 0.01 to 10000"),
            ("MIN_POLL_INTERVAL_MS", "-1", "greater than or equal to 0"),
            ("GC", "off", "'tuned' or 'default'"),
            ("ALLOWED_HOSTS", "mcp.example.com,https://mcp.example.com", "a host name or address"),
            ("ALLOWED_ORIGINS", "app.example.com", "scheme://host"),
            ("ALLOWED_ORIGINS", "https://app.example.com/page", "scheme://host"),
            ("REDIS_URL", "127.0.0.1:6379", "redis://"),
            ("REDIS_URL", "amqp://guest@localhost//", "redis://"),
            ("REDIS_URL", "redis://localhost:port/0", "port"),
            ("REDIS_URL", "redis://localhost:99999/0", "port"),
            ("REDIS_URL", "redis://localhost/0?helth_check_interval=3", "did you mean health_check_interval?"),
            ("REDIS_URL", "rediss://localhost/0?ssl_ca_certs=/nowhere", "ssl_ca_certs: /nowhere cannot be read"),
            ("REDIS_URL", "redis://localhost/0?credential_provider=a:b", "set MCP_CELERY_REDIS_CREDENTIALS"),
            ("BROKER_URL", "redis://localhost/0?ssl_cert_reqs=none", "needs rediss:// or valkeys://"),
            ("RESULT_BACKEND", "redis://localhost/0?protocol=4", "protocol: expected 2 or 3"),
            ("REDIS_CREDENTIALS", "reports.secrets", "module:attribute"),
            ("RESULT_BACKEND", "rpc://", "delivers each result once"),
            ("RESULT_BACKEND", "rpc", "delivers each result once"),
            ("RESULT_BACKEND", "disabled://", "keeps no results"),
            ("RESULT_BACKEND", "disabled", "keeps no results"),
            ("KEY_PREFIX", "with space", "letters"),
            ("KEY_PREFIX", "*", "letters"),
            ("KEY_PREFIX", "x" * 101, "100"),
            ("NAMESPACE", "Reports", "lower-case"),
            ("NAMESPACE", "a:b", "lower-case"),
            ("NAMESPACE", "x" * 64, "63"),
            ("SERVER", "workers demo", "module:attribute"),
            ("SERVER", ":server", "module:attribute"),
            ("SERVER", "workers.demo:", "module:attribute"),
            ("SNAPSHOT_HEADERS", "x-trace; x-tenant", "commas"),
            ("ENCRYPTION_KEYS", "short", "key 1 has 5 bytes"),
            ("ENCRYPTION_KEYS", f"{KEY},short", "key 2 has 5 bytes"),
            ("ENCRYPTION_KEYS", f"{KEY},{KEY}", "key 2 is listed twice"),
            ("ENCRYPTION_KEYS", ",", "no key"),
            ("WEBHOOK_URL", "ftp://hooks.example", "http:// or https://"),
            ("WEBHOOK_URL", "https://", "with a host"),
            ("WEBHOOK_URL", "https://hooks.example/a b", "without spaces"),
            ("WEBHOOK_URL", "https://hooks.example/#in", "remove the fragment (from # on)"),
            ("WEBHOOK_SECRETS", "secret", "secret 1: expected whsec_"),
            ("WEBHOOK_SECRETS", "whsec_QUFB", "secret 1: it has 3 bytes"),
            ("WEBHOOK_SECRETS", f"{WEBHOOK_SECRET},{WEBHOOK_SECRET}", "secret 2 is listed twice"),
            ("WEBHOOK_SECRETS", ",", "no secret"),
            ("HEALTH_PORT", "65536", "65535"),
            ("ABANDON_AFTER_SECONDS", "0", "greater than 0"),
            ("ABANDON_AFTER_SECONDS", "inf", "finite"),
            ("DRAIN_SECONDS", "-1", "greater than or equal to 0"),
            ("DRAIN_SECONDS", "inf", "finite"),
            ("LOG_FORMAT", "xml", "'text' or 'json'"),
            ("TELEMETRY", "prometheus,zipkin", "expected prometheus or otlp, or both with a comma between, not zipkin"),
        ],
    )
    def test_a_wrong_value_names_its_variable_and_what_was_expected(
        self, refusal: Refusal, name: str, value: str, reason: str
    ) -> None:
        message = refusal(name, value)
        assert message.startswith(f"MCP_CELERY_{name}: ")
        assert reason in message

    def test_a_pool_of_one_connection_is_refused(self, refusal: Refusal) -> None:
        assert "MCP_CELERY_REDIS_MAX_CONNECTIONS" in refusal("REDIS_MAX_CONNECTIONS", "1")

    def test_lifetimes_that_contradict_each_other_name_both_variables(self, refusal: Refusal) -> None:
        message = refusal("MAX_TTL_MS", "3599999")
        assert "MCP_CELERY_DEFAULT_TTL_MS" in message
        assert "MCP_CELERY_MAX_TTL_MS" in message

    def test_webhooks_without_one_source_of_secrets_name_the_variables(
        self, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "MCP_CELERY_WEBHOOK_SECRETS" in refusal("WEBHOOK_URL", "https://hooks.example/")
        monkeypatch.setenv("MCP_CELERY_WEBHOOK_SECRETS", WEBHOOK_SECRET)
        assert "are both set" in refusal("WEBHOOK_SECRETS_FILE", "/run/secrets/webhooks")

    def test_all_wrong_values_are_reported_together(self, refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MCP_CELERY_NAMESPACE", "A")
        message = refusal("POLL_INTERVAL_MS", "0")
        assert "MCP_CELERY_NAMESPACE" in message
        assert "MCP_CELERY_POLL_INTERVAL_MS" in message

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("REDIS_URL", f"http://user:{SECRET}@localhost/0"),
            ("REDIS_URL", f"redis://user:{SECRET}@localhost:port/0"),
            ("REDIS_URL", f"redis://user:{SECRET}@[::1/0"),
            ("REDIS_URL", f"redis://user:{SECRET}℀@localhost/0"),
            ("REDIS_URL", f"redis://user:1?{SECRET}=x@localhost/0"),
            ("REDIS_URL", f"redis://user:1/{SECRET}@localhost/0"),
            ("REDIS_URL", f"redis://user:1#{SECRET}@localhost/0"),
            ("REDIS_URL", f"redis://localhost/0?password=a&{SECRET}=x"),
            ("REDIS_URL", f"unix:///run/redis.sock?password=a&{SECRET}=x"),
            ("REDIS_URL", f"unix://user:{SECRET}@host/run/redis.sock"),
            ("BROKER_URL", f"redis://user:{SECRET}@localhost:port/0"),
            ("RESULT_BACKEND", f"rediss://user:{SECRET}@localhost:port/0"),
            ("RESULT_BACKEND", f"rpc://user:{SECRET}@localhost/"),
            ("SERVER", SECRET),
            ("NAMESPACE", SECRET.upper()),
            ("POLL_INTERVAL_MS", SECRET),
            ("ENCRYPTION_KEYS", SECRET),
            ("WEBHOOK_SECRETS", f"whsec_{SECRET}"),
            ("WEBHOOK_URL", f"https://user:{SECRET}@hooks.example/"),
            ("ENCRYPTION_KEYS", f"{SECRET * 3},{SECRET * 3}"),
        ],
    )
    def test_no_message_holds_the_value(self, refusal: Refusal, name: str, value: str) -> None:
        message = refusal(name, value)
        assert f"MCP_CELERY_{name}" in message
        assert SECRET.lower() not in message.lower()

    def test_no_cause_holds_the_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MCP_CELERY_REDIS_URL", f"http://:{SECRET}@localhost/0")
        with pytest.raises(ConfigurationError) as error:
            Settings.load()
        # What a logged traceback would print after "direct cause" or "during handling".
        assert error.value.__cause__ is None
        assert error.value.__suppress_context__


class TestValues:
    def test_without_any_variable_there_are_defaults(self) -> None:
        settings = Settings.load()
        assert settings.redis_url == "redis://127.0.0.1:6379/0"
        assert settings.celery_broker_url == settings.celery_result_backend == settings.redis_url
        assert settings.key_prefix == "mcp_celery"
        assert settings.default_ttl_ms <= settings.max_ttl_ms

    @pytest.mark.parametrize("field", sorted(Settings.model_fields))
    def test_an_empty_variable_is_an_unset_one(self, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
        monkeypatch.setenv(ENV_PREFIX + field.upper(), "")
        assert Settings.load() == Settings.load(**{field: Settings.model_fields[field].default})

    def test_an_argument_beats_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MCP_CELERY_NAMESPACE", "from-environment")
        assert Settings.load(namespace="given").namespace == "given"

    def test_a_refused_argument_is_reported_like_a_variable(self) -> None:
        with pytest.raises(ConfigurationError, match="MCP_CELERY_POLL_INTERVAL_MS"):
            Settings.load(poll_interval_ms=0)

    def test_broker_and_backend_may_be_on_other_servers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MCP_CELERY_BROKER_URL", "amqp://guest@localhost//")
        monkeypatch.setenv("MCP_CELERY_RESULT_BACKEND", "db+sqlite:///results.db")
        settings = Settings.load()
        assert settings.celery_broker_url == "amqp://guest@localhost//"
        assert settings.celery_result_backend == "db+sqlite:///results.db"

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            ({"redis_password_file": "/f", "redis_credentials": "a:b"}, "are both set"),
            ({"redis_password_file": "/f", "redis_url": "redis://:pw@localhost/0"}, "has a password"),
            ({"redis_credentials": "a:b", "redis_url": "redis://localhost/0?password=pw"}, "has a password"),
            ({"redis_credentials": "a:b", "redis_url": "redis://app@localhost/0"}, "names one"),
            ({"redis_credentials": "a:b", "redis_url": "memory://"}, "has no password"),
        ],
    )
    def test_a_password_with_two_sources_is_refused(self, given: dict[str, str], reason: str) -> None:
        with pytest.raises(ConfigurationError, match=r"MCP_CELERY_REDIS_(PASSWORD_FILE|CREDENTIALS)") as error:
            Settings.load(**given)
        assert reason in str(error.value)

    @pytest.mark.parametrize(
        ("url", "shares"),
        [
            (None, True),
            ("redis://CACHE.example/7", True),
            ("redis://app@cache.example/7", True),
            ("redis://other@cache.example/7", False),
            ("redis://app:own@cache.example/7", False),
            ("redis://elsewhere.example/0", False),
            ("redis://cache.example:6380/0", False),
            ("amqp://cache.example//", False),
        ],
    )
    def test_broker_and_results_share_the_credentials_of_the_same_server(self, url: str | None, shares: bool) -> None:
        settings = Settings.load(
            redis_url="redis://app@cache.example/0",
            redis_password_file="/run/secrets/redis",
            broker_url=url,
            result_backend=url,
        )
        assert ("credential_provider=mcp_celery" in settings.celery_broker_url) == shares
        assert ("credential_provider=mcp_celery" in settings.celery_result_backend) == shares

    @pytest.mark.parametrize(
        ("text", "names"),
        [("", set[str]()), ("X-Tenant", {"x-tenant"}), (" X-Tenant , x-trace,,", {"x-tenant", "x-trace"})],
    )
    def test_the_allowlist_of_headers_is_lower_case(self, text: str, names: set[str]) -> None:
        assert Settings.load(snapshot_headers=text).header_names == names

    @pytest.mark.parametrize("names", ["authorization", "x-tenant, Cookie", "Proxy-Authorization"])
    def test_headers_that_are_secrets_are_kept_only_sealed(self, names: str) -> None:
        with pytest.raises(ConfigurationError, match=r"MCP_CELERY_SNAPSHOT_HEADERS names .*MCP_CELERY_ENCRYPTION_KEYS"):
            Settings.load(snapshot_headers=names)
        assert Settings.load(snapshot_headers=names, encryption_keys=KEY).header_names

    def test_keys_are_read_newest_first_and_never_shown(self) -> None:
        settings = Settings.load(encryption_keys=f" {SECRET * 3} ,{KEY},")
        assert settings.key_ring == (SECRET * 3, KEY)
        assert SECRET not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"

    def test_refused_keys_are_not_shown_by_the_model_either(self) -> None:
        with pytest.raises(ValueError, match="encryption_keys") as error:
            Settings.model_validate({"encryption_keys": SECRET})
        assert SECRET not in str(error.value)

    def test_settings_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            Settings.load().namespace = "other"
