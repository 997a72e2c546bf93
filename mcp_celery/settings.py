"""The settings, read from ``MCP_CELERY_*`` environment variables. Every value is checked before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mcp_celery.common.allowed_hosts import host_pattern, origin_pattern
from mcp_celery.common.cluster_url import CLUSTER_SCHEMES, has_hash_tag, shared_root
from mcp_celery.common.encryption_keys import HOW_TO_MAKE_A_KEY, MIN_KEY_BYTES
from mcp_celery.common.garbage import GarbageCollection
from mcp_celery.common.rates import Rate
from mcp_celery.common.redis_translation import broker_settings, result_settings
from mcp_celery.common.redis_url import check_files, is_redis_url, parse, scheme_of
from mcp_celery.common.sentinel_url import SENTINEL_SCHEMES
from mcp_celery.common.standard_webhooks import HOW_TO_MAKE_A_SECRET, check_url, keys_of_secrets
from mcp_celery.config import DEFAULT_MAX_RESULT_BYTES, Foreground
from mcp_celery.errors import ConfigurationError

ENV_PREFIX: Final = "MCP_CELERY_"
OTHER_VARIABLES: Final = frozenset({f"{ENV_PREFIX}CLIENT_HEADERS"})
"""Variables that begin as settings do, and that commands of the client read."""
STORE_RESULTS: Final = "mcp_celery.server.store_results:StoreResults"
"""Celery's result backend that keeps results in the store of the tasks."""
MEMORY_URL: Final = "memory://"
"""Keeps tasks in the server's process, which runs their jobs itself."""
CELERY_CREDENTIALS: Final = "mcp_celery.redis_credentials:celery_credentials"
"""What gives kombu and Celery the credentials of the records' Redis, where they use the same."""
BROKER_PASSWORD: Final = "mcp_celery.redis_credentials:broker_password"  # noqa: S105 - the name of a function
"""What gives kombu the password of the URL of a Unix socket or of Sentinels. kombu would show it to everyone who may
inspect a worker.
"""
LogFormat = Literal["text", "json"]
Fair = Literal["scope"]
"""Whose tasks take turns: those of each caller."""
ComponentMatch = Literal["exact", "accepts"]
"""Which version of a component may run a job: the server's; or, where no live worker has that, one that takes the
request's arguments.
"""
Exporter = Literal["prometheus", "otlp"]
OtherStore = Literal["stop", "drop"]
WorkerTransport = Literal["batched", "kombu"]
"""What a worker does with a job whose task another store keeps."""
_EXPORTERS: Final[tuple[Exporter, ...]] = ("prometheus", "otlp")
_REFUSED_RESULT_BACKENDS: Final = {
    "rpc": "it delivers each result once, to the process that sent the job, and tasks are read by any server",
    "disabled": "it keeps no results",
}
_SECRET_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "cookie"})
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_NAMESPACE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_SERVER: Final = re.compile(r"([^:]+\.py|[\w.]+)(:\w+)?")
_BRACES: Final = frozenset("{}")
_KEY_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:{}-]{1,100}")


class Settings(BaseSettings):
    """Settings of one server and its workers; each field is the variable ``MCP_CELERY_`` + its upper-case name."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis or Valkey for task records and push; `sentinel://HOST:PORT,HOST:PORT/MASTER` for the master "
        "that Sentinels name, `redis+cluster://HOST:PORT,HOST:PORT` for a Redis Cluster. `memory://` keeps tasks in "
        "the server's process, which runs their jobs itself: for tests and development.",
    )
    redis_password_file: str | None = Field(
        None,
        description="File with the password of that Redis, read again for each connection. The user is the URL's.",
    )
    redis_credentials: str | None = Field(
        None,
        description="redis-py `CredentialProvider` that gives user and password of that Redis for each connection, as "
        "`module:attribute`: an instance, or a function or class that makes one.",
    )
    broker_url: str | None = Field(None, description="Celery broker. Default: the Redis URL.")
    result_backend: str | None = Field(
        None, description="Celery result backend. Default: the Redis URL, a Redis Cluster too."
    )
    key_prefix: str = Field("mcp_celery", description="First part of every Redis key.")
    hash_tags: bool = Field(
        False,
        description="Whether all keys of a namespace have one hash tag, `{prefix:namespace}`, and all keys of a Redis "
        "broker another one, `{prefix}`: for a service with one shard in cluster mode. With `redis+cluster://` keys of "
        "namespaces always have.",
    )
    namespace: str | None = Field(None, description="Sets servers on one broker apart. Default: the server's name.")
    server: str | None = Field(
        None, description="The server that workers run, as `module:attribute` or `path/to/file.py:attribute`."
    )
    queue: str | None = Field(None, description="Celery queue of the jobs. Default: `mcp.{namespace}`.")
    default_ttl_ms: int = Field(
        3_600_000, gt=0, description="How long a task is kept if neither its request nor its component sets a time."
    )
    max_ttl_ms: int = Field(
        86_400_000, gt=0, le=30 * 86_400_000, description="The longest time for which a task is kept; at most 30 days."
    )
    poll_interval_ms: int = Field(1_000, gt=0, description="How often clients without push should poll.")
    min_poll_interval_ms: int = Field(
        0,
        ge=0,
        le=60_000,
        description="A client that polls an open task again within this time gets its last answer, from the memory "
        "of the server process. 0: each poll reads the store.",
    )
    foreground: Foreground = Field(
        "server",
        description="Where tools run for clients without tasks: in the `server`, or on a `worker`, for which it waits.",
    )
    progress_interval_ms: int = Field(
        100, gt=0, description="Shortest time between two pushed progress messages of one task."
    )
    snapshot_headers: str = Field(
        "",
        description="Comma-separated names of HTTP request headers that a job may see in `ctx.headers`; "
        "`authorization` and `cookie` only with encryption keys.",
    )
    encryption_keys: SecretStr | None = Field(
        None,
        description="Comma-separated secrets, newest first, that seal requests, questions, answers, errors and results "
        "and sign jobs and records. Default: they are kept readable, without access tokens.",
    )
    accept_unsealed: bool = Field(
        False,
        description="Whether tasks are accepted that are not sealed although there are encryption keys: while those "
        "end that release 0.1.0 created. What workers write is not sealed meanwhile.",
    )
    store_timeout_ms: int = Field(
        1_500,
        gt=0,
        description="How long the store may be silent upon a command before requests end in -32603. Waiting for a "
        "connection does not count.",
    )
    publish_timeout_ms: int = Field(
        1_500,
        gt=0,
        description="How long the broker may take for a message before its request ends in -32603. Waiting for other "
        "messages does not count.",
    )
    redis_max_connections: int = Field(
        32,
        gt=1,
        description="Connections of one process to Redis, besides two that all scripts share; requests wait when all "
        "are busy.",
    )
    idle_connection_ms: int = Field(
        60_000,
        gt=0,
        description="A connection to Redis or the broker that was idle for this time is replaced before its next "
        "use, in case a firewall or load balancer has forgotten it.",
    )
    heartbeat_ms: int = Field(
        5_000, ge=100, description="Time between two heartbeats of a worker; after three missed ones it counts as dead."
    )
    abandon_after_seconds: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Time after which an open task is cancelled whose owner neither polls nor follows it. Default: "
        "never.",
    )
    max_redeliveries: int = Field(
        1, ge=0, description="How often a task's job is published again because its worker died or the broker lost it."
    )
    lost_after_ms: int = Field(
        3_600_000,
        gt=0,
        description="How long a job may wait before it is taken for lost and published again, where the broker cannot "
        "say how many jobs wait.",
    )
    max_handbacks: int = Field(
        100,
        ge=0,
        description="How often, for 60 s, a job is handed back that reached a worker with another version of its "
        "component, while a live worker has the right one; then its task fails.",
    )
    component_match: ComponentMatch = Field(
        "exact",
        description="Which version of a component runs a job: `exact`, the server's; `accepts`, where no live worker "
        "has that one, also another one that takes all arguments of the request.",
    )
    other_store: OtherStore = Field(
        "stop",
        description="What a worker does that receives a job whose task another Redis or key prefix keeps: `stop`, it "
        "gives the job back and stops consuming its queue until the task is found; `drop`, it drops the job.",
    )
    max_input_bytes: int = Field(
        1_048_576, gt=0, description="Size of the answers that one `tasks/update` may bring, as JSON."
    )
    max_result_bytes: int = Field(
        DEFAULT_MAX_RESULT_BYTES, gt=0, description="Size of a result, as JSON, above which its task fails."
    )
    max_push_bytes: int = Field(
        262_144,
        gt=0,
        description="Size of a task's state with its result, as JSON, above which it is not pushed on "
        "`subscriptions/listen`; clients get it by polling.",
    )
    exposed_interval_ms: int = Field(
        1_000, ge=50, description="How often the server reads the results of exposed jobs that have not ended."
    )
    exposed_events: bool = Field(
        True,
        description="Whether it reads them also when Celery's events announce a change (workers with `-E`).",
    )
    max_listen_tasks: int = Field(1_000, gt=0, description="Task ids that one `subscriptions/listen` may name.")
    max_streams_per_scope: int = Field(
        256,
        gt=0,
        description="Streams (`subscriptions/listen`) that one caller may hold open at one server process; "
        "further ones are refused.",
    )
    max_streams: int = Field(
        10_000,
        gt=0,
        description="Streams (`subscriptions/listen`) that one server process holds open; further ones are refused.",
    )
    max_pending_requests: int = Field(
        2_000,
        gt=0,
        description="Requests about tasks that one server process works on at a time; further ones are refused with "
        "-32005 and `retryAfterMs`, before any work.",
    )
    max_tasks_per_scope: int = Field(
        10_000, gt=0, description="Open tasks that one caller may have; further ones are refused."
    )
    create_rate_per_scope: str | None = Field(
        None,
        description="Tasks that one caller may create, over all servers, as `10/m` (`/s`, `/m`, `/h`; up to 10000); "
        "further ones are refused with -32005 and `retryAfterMs`. Default: any number.",
    )
    max_running_per_scope: int | None = Field(
        None,
        gt=0,
        description="Jobs of one caller that run at a time, over all workers; further tasks wait, and take no slot of "
        "a worker. Default: any number.",
    )
    fair: Fair | None = Field(
        None,
        description="`scope`: callers take turns. The broker has 1.25 jobs for each slot of the live workers; other "
        "tasks wait in the store, and go on caller by caller. Default: the broker gets each job at once.",
    )
    max_argument_bytes: int = Field(
        4_194_304, gt=0, description="Size of the request, as JSON, that may become a task."
    )
    max_stored_bytes_per_scope: int = Field(
        268_435_456,
        gt=0,
        description="Bytes that are kept for one caller: requests of open tasks, records, and results where they are "
        "in the Redis of the records; further tasks are refused.",
    )
    max_store_memory_percent: int = Field(
        90,
        gt=0,
        le=100,
        description="How much of Redis's `maxmemory` may be in use; above it, new tasks are refused.",
    )
    max_queue_length: int | None = Field(
        None,
        gt=0,
        description="Jobs that may wait for a worker in one queue; further tasks are refused. Default: any number.",
    )
    hide_anonymous_ids: bool = Field(
        False,
        description="Whether Celery's ids, which Flower shows, have a digest in place of an anonymous task's id, which "
        "is the right to read the task.",
    )
    max_failed_lookups_per_minute: int = Field(
        1_000, gt=0, description="Requests for tasks that are not there, after which a caller is refused for a while."
    )
    allowed_hosts: str = Field(
        "",
        description="Comma-separated names by which clients reach the server (`Host`), besides this machine's loopback "
        "and the address it listens on; `*` for any.",
    )
    allowed_origins: str = Field(
        "", description="Comma-separated origins of web pages that may use the server, besides this machine's loopback."
    )
    http_max_header_bytes: int = Field(
        65_536, gt=0, description="Size of an HTTP request's line and headers; larger ones are refused with 431."
    )
    http_max_headers: int = Field(
        100, gt=0, description="Number of an HTTP request's headers; more are refused with 431."
    )
    http_max_body_bytes: int = Field(
        4_194_304, gt=0, description="Size of an HTTP request's body; larger ones are refused with 413."
    )
    http_max_unfinished_bytes: int = Field(
        268_435_456,
        gt=0,
        description="Size of all incomplete HTTP bodies of one server process; further ones are refused with 503.",
    )
    http_receive_timeout_ms: int = Field(
        30_000,
        gt=0,
        description="Time for an HTTP request's headers to arrive, and again for its body; late ones are refused "
        "with 408. Responses have no limit.",
    )
    http_max_connections: int = Field(
        4_000, gt=0, description="Open connections of one server process; further ones are refused with 503."
    )
    http_max_sessions: int = Field(
        10_000,
        gt=0,
        description="Open sessions (2025-11-25) of one server process; further ones are refused with 503.",
    )
    http_session_idle_seconds: int = Field(
        1_800, gt=0, description="Time without a request after which a session ends. Its tasks go on."
    )
    webhook_url: str | None = Field(
        None,
        description="Where webhooks go when a task has ended or waits for its client, of components that name no "
        "receiver themselves. Default: nowhere.",
    )
    webhook_secrets: SecretStr | None = Field(
        None,
        description="Comma-separated secrets that sign webhooks, each `whsec_` and base64 of 24 to 64 bytes. Each "
        "webhook has a signature of each.",
    )
    webhook_secrets_file: str | None = Field(
        None, description="File with these secrets instead, read again for each webhook."
    )
    webhook_contents: bool = Field(
        False, description="Whether webhooks contain a task's status message too, which its component may have written."
    )
    webhook_queue: str | None = Field(
        None, description="Celery queue of the jobs that deliver webhooks. Default: that of the server's jobs."
    )
    webhook_timeout_ms: int = Field(
        10_000, gt=0, le=60_000, description="How long a receiver may take for a webhook, and so hold a worker's slot."
    )
    webhook_retry_seconds: int = Field(
        86_400,
        gt=0,
        le=3 * 86_400,
        description="For how long a webhook is tried again that its receiver does not take; at most three days.",
    )

    gc: GarbageCollection = Field(
        "tuned",
        description="Python's garbage collector in `mcp-celery serve`, `dev` and `celery -A mcp_celery worker`: "
        "`tuned`, it leaves out what was imported and collects less often; `default`, as Python has it.",
    )

    worker_transport: WorkerTransport = Field(
        "batched",
        description="How `celery -A mcp_celery worker` takes messages from a Redis broker and acknowledges them: "
        "`batched`, many in one round trip; `kombu`, one by one, as Celery does. Both store the same.",
    )

    health_port: int | None = Field(
        None,
        gt=0,
        le=65_535,
        description="Port of the server's `/healthz` and `/readyz`. Default: they answer on the port of the MCP "
        "endpoint.",
    )
    worker_health_port: int | None = Field(
        None, gt=0, le=65_535, description="Port of a worker's `/healthz` and `/readyz`. Default: it has none."
    )
    health_host: str | None = Field(
        None,
        description="Address to listen on with these ports; `0.0.0.0` for probes of Kubernetes. Default: a server's "
        "own address, and 127.0.0.1 for workers.",
    )
    drain_seconds: float = Field(
        0,
        ge=0,
        le=3_600,
        allow_inf_nan=False,
        description="How long `mcp-celery serve` goes on to serve after SIGTERM, while `/readyz` answers 503, so that "
        "load balancers stop sending requests first.",
    )
    worker_heartbeat_file: str | None = Field(
        None,
        description="File whose modification time is that of a worker's last heartbeat, for probes that run a command. "
        "The worker removes it when it ends.",
    )
    telemetry: str = Field(
        "",
        description="Comma-separated exporters of metrics and traces, of the extra `telemetry`: `prometheus` serves "
        "`/metrics` beside `/healthz`; `otlp` sends both to `OTEL_EXPORTER_OTLP_ENDPOINT`. Default: none.",
    )
    log_format: LogFormat = Field(
        "text", description="How servers and workers log: `text`, lines for people; `json`, one object a line."
    )

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: str) -> str:
        if scheme_of(value) == scheme_of(MEMORY_URL):
            if value != MEMORY_URL:
                raise ValueError("memory:// takes neither host, path nor options")
            return value
        if not is_redis_url(value) and scheme_of(value) not in {*SENTINEL_SCHEMES, *CLUSTER_SCHEMES}:
            raise ValueError(
                "expected redis://, rediss://, valkey://, valkeys://, unix://, sentinel://, redis+cluster:// or memory://"
            )
        check_files(parse(value))
        return value

    @field_validator("broker_url", "result_backend")
    @classmethod
    def _is_of_celery(cls, value: str | None) -> str | None:
        if value is not None and scheme_of(value) in CLUSTER_SCHEMES:
            raise ValueError(
                "Celery cannot use a Redis Cluster: name RabbitMQ, a database or a Redis that is no cluster. Results "
                "are in the cluster of MCP_CELERY_REDIS_URL where MCP_CELERY_RESULT_BACKEND is not set"
            )
        if value is not None and is_redis_url(value):
            check_files(parse(value, for_celery=True))
        return value

    @field_validator("redis_credentials")
    @classmethod
    def _is_provider(cls, value: str | None) -> str | None:
        if value is not None and not all(value.partition(":")):
            raise ValueError("expected module:attribute, for example reports.secrets:redis_credentials")
        return value

    @field_validator("result_backend")
    @classmethod
    def _keeps_results(cls, value: str | None) -> str | None:
        reason = _REFUSED_RESULT_BACKENDS.get((value or "").split(":")[0])
        if reason:
            raise ValueError(f"this result backend cannot hold tasks, because {reason}")
        return value

    @field_validator("key_prefix")
    @classmethod
    def _is_prefix(cls, value: str) -> str:
        if not _KEY_PREFIX.fullmatch(value):
            raise ValueError("expected 1 to 100 letters, digits or any of _ . : { } -")
        return value

    @field_validator("namespace")
    @classmethod
    def _is_namespace(cls, value: str | None) -> str | None:
        if value is not None and not _NAMESPACE.fullmatch(value):
            raise ValueError("expected at most 63 lower-case letters, digits, - or _")
        return value

    @field_validator("create_rate_per_scope")
    @classmethod
    def _is_rate(cls, value: str | None) -> str | None:
        if value is not None:
            Rate.parse(value)
        return value

    @field_validator("server")
    @classmethod
    def _is_server(cls, value: str | None) -> str | None:
        if value is not None and not _SERVER.fullmatch(value):
            raise ValueError("expected module:attribute or path/to/file.py:attribute, for example workers.demo:server")
        return value

    @field_validator("snapshot_headers")
    @classmethod
    def _are_header_names(cls, value: str) -> str:
        if not all(_HEADER_NAME.fullmatch(name) for name in _parts(value)):
            raise ValueError("expected names of HTTP headers with commas between them")
        return value

    @field_validator("telemetry")
    @classmethod
    def _are_exporters(cls, value: str) -> str:
        if unknown := sorted({*_parts(value)} - {*_EXPORTERS}):
            raise ValueError(f"expected {' or '.join(_EXPORTERS)}, or both with a comma between, not {unknown[0]:.50}")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, value: str) -> str:
        return ",".join(host_pattern(one) for one in _parts(value))

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, value: str) -> str:
        return ",".join(origin_pattern(one) for one in _parts(value))

    @field_validator("encryption_keys")
    @classmethod
    def _are_keys(cls, value: SecretStr | None) -> SecretStr | None:
        keys = [] if value is None else _parts(value.get_secret_value())
        if value is not None and not keys:
            raise ValueError("it holds no key")
        for number, key in enumerate(keys, 1):
            if (size := len(key.encode())) < MIN_KEY_BYTES:
                raise ValueError(f"key {number} has {size} bytes, not {MIN_KEY_BYTES} or more; {HOW_TO_MAKE_A_KEY}")
            if key in keys[: number - 1]:
                raise ValueError(f"key {number} is listed twice")
        return value

    @field_validator("webhook_url")
    @classmethod
    def _is_receiver(cls, value: str | None) -> str | None:
        return None if value is None else check_url(value)

    @field_validator("webhook_secrets")
    @classmethod
    def _are_webhook_secrets(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            keys_of_secrets(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _fit_each_other(self) -> Settings:
        self._require_one_source_of_webhook_secrets()
        if self.is_in_memory and (self.broker_url or self.result_backend):
            name = "BROKER_URL" if self.broker_url else "RESULT_BACKEND"
            raise ValueError(
                f"{ENV_PREFIX}{name} is set beside {ENV_PREFIX}REDIS_URL={MEMORY_URL}, which runs jobs in the server's "
                "process and uses neither a broker nor a result backend: unset one of them"
            )
        self._require_one_password()
        if self.has_hash_tags and _BRACES & {*self.key_prefix} and not has_hash_tag(self.key_prefix):
            raise ValueError(
                f"{ENV_PREFIX}KEY_PREFIX has a brace and no hash tag: on a cluster, and with {ENV_PREFIX}HASH_TAGS, "
                "braces are only for a hash tag, such as {reports}"
            )
        if self.default_ttl_ms > self.max_ttl_ms:
            raise ValueError(f"{ENV_PREFIX}DEFAULT_TTL_MS is above {ENV_PREFIX}MAX_TTL_MS")
        if (secret := self.header_names & _SECRET_HEADERS) and self.encryption_keys is None:
            raise ValueError(
                f"{ENV_PREFIX}SNAPSHOT_HEADERS names {', '.join(sorted(secret))}, which must not be kept readable: "
                f"set {ENV_PREFIX}ENCRYPTION_KEYS; {HOW_TO_MAKE_A_KEY}"
            )
        return self

    def _require_one_source_of_webhook_secrets(self) -> None:
        name = f"{ENV_PREFIX}WEBHOOK_SECRETS"
        if self.webhook_secrets is not None and self.webhook_secrets_file:
            raise ValueError(f"{name} and {name}_FILE are both set: unset one of them")
        if self.webhook_url is not None and not self.has_webhooks:
            raise ValueError(
                f"{ENV_PREFIX}WEBHOOK_URL is set, but nothing signs its webhooks: set {name} or {name}_FILE; "
                f"{HOW_TO_MAKE_A_SECRET}"
            )

    def _require_one_password(self) -> None:
        """Refuse two sources of one password."""
        file, provider = f"{ENV_PREFIX}REDIS_PASSWORD_FILE", f"{ENV_PREFIX}REDIS_CREDENTIALS"
        if self.redis_password_file and self.redis_credentials:
            raise ValueError(f"{file} and {provider} are both set: unset one of them")
        if not self._has_credentials:
            return
        name = file if self.redis_password_file else provider
        if self.is_in_memory:
            raise ValueError(f"{name} is set, but {ENV_PREFIX}REDIS_URL={MEMORY_URL} has no password: unset it")
        url = parse(self.redis_url)
        if url.password is not None:
            raise ValueError(f"{name} is set, and {ENV_PREFIX}REDIS_URL has a password: remove one of them")
        if url.username is not None and self.redis_credentials:
            raise ValueError(f"{name} gives the user, and {ENV_PREFIX}REDIS_URL names one: remove it there")

    @classmethod
    def load(cls, **values: Any) -> Settings:
        """Read the environment.

        Args:
            **values: Fields that take precedence over the environment.

        Raises:
            ConfigurationError: A value is refused; the message names the variable and the reason, never the value
                (a URL may hold a password).
        """
        try:
            return cls(**values)
        except ValidationError as error:
            reasons = [
                f"{ENV_PREFIX + str(one['loc'][0]).upper()}: {one['msg']}" if one["loc"] else one["msg"]
                for one in error.errors(include_url=False, include_input=False)
            ]
            raise ConfigurationError("; ".join(reason.replace("Value error, ", "") for reason in reasons)) from None

    @property
    def is_in_memory(self) -> bool:
        """Whether tasks are kept in the server's process."""
        return self.redis_url == MEMORY_URL

    @property
    def is_cluster(self) -> bool:
        """Whether tasks are kept in a Redis Cluster."""
        return scheme_of(self.redis_url) in CLUSTER_SCHEMES

    @property
    def has_hash_tags(self) -> bool:
        """Whether all keys of a namespace have one hash tag."""
        return self.hash_tags or self.is_cluster

    @property
    def celery_broker(self) -> dict[str, Any]:
        """Celery's settings of the broker: ``broker_url``, and what kombu does not take in a URL. None of them where
        the broker would be a Redis Cluster.
        """
        if self.broker_url is None and self.is_cluster:
            return {}
        url = self.broker_url or self.redis_url
        provider = self._credentials_for(url)
        if provider is None and self._shows_password(url):
            provider = BROKER_PASSWORD
        found = broker_settings(url, credential_provider=provider, with_pool=bool(self.broker_url))
        if self.hash_tags and is_redis_url(url):
            options: dict[str, Any] = found.get("broker_transport_options", {})
            found["broker_transport_options"] = {"global_keyprefix": f"{shared_root(self.key_prefix)}:", **options}
        return found

    @property
    def celery_broker_url(self) -> str:
        """The broker in the form that kombu reads; empty where it would be a Redis Cluster."""
        return self.celery_broker.get("broker_url", "")

    @property
    def celery_results(self) -> dict[str, Any]:
        """Celery's settings of the result backend: ``result_backend``, and what must not be shown with it."""
        if self.is_in_memory:
            return {"result_backend": "disabled://"}  # the store keeps results itself
        if self.result_backend is None and self.has_hash_tags:
            return {"result_backend": STORE_RESULTS}
        url = self.result_backend or self.redis_url
        return result_settings(url, credential_provider=self._credentials_for(url), with_pool=bool(self.result_backend))

    @property
    def celery_result_backend(self) -> str:
        """The result backend in the form that Celery reads."""
        return self.celery_results["result_backend"]

    @staticmethod
    def _shows_password(url: str) -> bool:
        """Whether kombu would show the password of a broker's URL to everyone who may inspect a worker."""
        if not is_redis_url(url):
            return False
        parsed = parse(url, for_celery=True)
        return parsed.password is not None and (parsed.transport == "unix" or parsed.sentinels is not None)

    @property
    def _has_credentials(self) -> bool:
        return bool(self.redis_password_file or self.redis_credentials)

    def _credentials_for(self, url: str) -> str | None:
        """Where kombu and Celery find the credentials of the records' Redis.

        Args:
            url: Of the broker or the result backend.

        Returns:
            None where they have their own: another server, another user, or a password in the URL.
        """
        if not (self._has_credentials and is_redis_url(url)):
            return None
        ours, theirs = parse(self.redis_url), parse(url, for_celery=True)
        same = theirs.shares_server_with(ours) and theirs.username in (None, ours.username)
        return CELERY_CREDENTIALS if same and theirs.password is None else None

    @property
    def create_rate(self) -> Rate | None:
        """How many tasks one caller may create, None for any number."""
        return None if self.create_rate_per_scope is None else Rate.parse(self.create_rate_per_scope)

    @property
    def header_names(self) -> frozenset[str]:
        """The allowlist of request headers, in lower case."""
        return frozenset(name.lower() for name in _parts(self.snapshot_headers))

    @property
    def exporters(self) -> frozenset[Exporter]:
        """Which exporters of metrics and traces there are."""
        return frozenset(name for name in _EXPORTERS if name in _parts(self.telemetry))

    @property
    def allowed_host_names(self) -> tuple[str, ...]:
        """The further names by which clients reach the server."""
        return tuple(_parts(self.allowed_hosts))

    @property
    def allowed_origin_names(self) -> tuple[str, ...]:
        """The further origins of web pages that may use the server."""
        return tuple(_parts(self.allowed_origins))

    @property
    def has_webhooks(self) -> bool:
        """Whether webhooks are delivered: there are secrets to sign them."""
        return self.webhook_secrets is not None or bool(self.webhook_secrets_file)

    def webhook_keys(self) -> tuple[bytes, ...]:
        """The keys that sign webhooks now; empty where there are none. Reads a file.

        Raises:
            ConfigurationError: ``MCP_CELERY_WEBHOOK_SECRETS_FILE`` cannot be read, or a secret in it is refused.
        """
        if self.webhook_secrets is not None:
            return keys_of_secrets(self.webhook_secrets.get_secret_value())
        if not self.webhook_secrets_file:
            return ()
        name = f"{ENV_PREFIX}WEBHOOK_SECRETS_FILE"
        try:
            return keys_of_secrets(Path(self.webhook_secrets_file).read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise ConfigurationError(f"{name}: {self.webhook_secrets_file} is not UTF-8") from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ConfigurationError(f"{name}: cannot read {self.webhook_secrets_file}: {reason}") from None
        except ValueError as error:
            raise ConfigurationError(f"{name}: {self.webhook_secrets_file}: {error}") from None

    @property
    def key_ring(self) -> tuple[str, ...]:
        """The encryption keys, newest first; empty where there are none."""
        return () if self.encryption_keys is None else tuple(_parts(self.encryption_keys.get_secret_value()))


def unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """Explain each variable whose name begins like a setting's but is not one, with the most similar setting.

    >>> list(unknown_variables({"MCP_CELERY_REDIS_ULR": "redis://localhost"}))
    ['MCP_CELERY_REDIS_ULR is not a setting; did you mean MCP_CELERY_REDIS_URL?']

    Args:
        environ: The environment's variables.
    """
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in known:
            nearest = get_close_matches(name, known, n=1)
            yield f"{name} is not a setting" + (f"; did you mean {nearest[0]}?" if nearest else "")


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]
