"""The settings, read from ``MCP_CELERY_*`` environment variables. Every value is checked before anything starts."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mcp_celery.config import DEFAULT_MAX_RESULT_BYTES, Foreground
from mcp_celery.errors import ConfigurationError
from mcp_celery.hosts import host_pattern, origin_pattern
from mcp_celery.sealing_keys import HOW_TO_MAKE_A_KEY, MIN_KEY_BYTES

ENV_PREFIX: Final = "MCP_CELERY_"
MEMORY_URL: Final = "memory://"
"""Keeps tasks in the server's process, which runs their jobs itself."""
_SCHEMES: Final = ("redis", "rediss", "unix", "memory")
_REFUSED_RESULT_BACKENDS: Final = {
    "rpc": "it delivers each result once, to the process that sent the job, and tasks are read by any server",
    "disabled": "it keeps no results",
}
_SECRET_HEADERS: Final = frozenset({"authorization", "proxy-authorization", "cookie"})
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_NAMESPACE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_KEY_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:{}-]{1,100}")


class Settings(BaseSettings):
    """Settings of one server and its workers; each field is the variable ``MCP_CELERY_`` + its upper-case name."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis or Valkey for task records and push. `memory://` keeps tasks in the server's process, which "
        "runs their jobs itself: for tests and development.",
    )
    broker_url: str | None = Field(None, description="Celery broker. Default: the Redis URL.")
    result_backend: str | None = Field(None, description="Celery result backend. Default: the Redis URL.")
    key_prefix: str = Field("mcp_celery", description="First part of every Redis key.")
    namespace: str | None = Field(None, description="Sets servers on one broker apart. Default: the server's name.")
    server: str | None = Field(None, description="The server that workers run, as `module:attribute`.")
    queue: str | None = Field(None, description="Celery queue of the jobs. Default: `mcp.{namespace}`.")
    default_ttl_ms: int = Field(3_600_000, gt=0, description="How long a task is kept when nobody says.")
    max_ttl_ms: int = Field(
        86_400_000, gt=0, le=30 * 86_400_000, description="The longest a task is kept, whoever asks; at most 30 days."
    )
    poll_interval_ms: int = Field(1_000, gt=0, description="How often clients without push should poll.")
    foreground: Foreground = Field(
        "server",
        description="Where tools run for clients that follow no task: `server`; or `worker`, for whose job it waits.",
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
        description="Comma-separated secrets, newest first, that seal requests, questions, answers and errors and sign "
        "jobs. Default: they are kept readable in Redis, without access tokens.",
    )
    accept_unsealed: bool = Field(
        False,
        description="Whether tasks are accepted that are not sealed although there are encryption keys: while those "
        "end that release 0.1.0 created.",
    )
    store_timeout_ms: int = Field(1_500, gt=0, description="How long a request waits for the store before -32603.")
    publish_timeout_ms: int = Field(1_500, gt=0, description="How long a request waits for the broker before -32603.")
    redis_max_connections: int = Field(
        32, gt=1, description="Connections of one process to Redis; requests wait when all are busy."
    )
    heartbeat_ms: int = Field(
        5_000, ge=100, description="Time between two heartbeats of a worker; after three missed it is taken for dead."
    )
    max_redeliveries: int = Field(
        1, ge=0, description="How often a task's job is published again because its worker died."
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
        description="Whether it reads them also when Celery's events tell of a change (workers with `-E`).",
    )
    max_listen_tasks: int = Field(1_000, gt=0, description="Task ids that one `subscriptions/listen` may name.")
    max_streams_per_scope: int = Field(
        256,
        gt=0,
        description="Streams (`subscriptions/listen`) that one caller may hold open at one server process; "
        "further ones are refused.",
    )
    max_tasks_per_scope: int = Field(
        10_000, gt=0, description="Open tasks that one caller may have; further ones are refused."
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

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in _SCHEMES:
            raise ValueError("expected redis://, rediss://, unix:// or memory://")
        if parts.scheme == "memory" and value != MEMORY_URL:
            raise ValueError("memory:// takes neither host, path nor options")
        try:
            _ = parts.port
        except ValueError:  # its text shows what was taken for the port, which may be half of a password
            raise ValueError("the port is not a number within 0…65535") from None
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

    @field_validator("server")
    @classmethod
    def _is_server(cls, value: str | None) -> str | None:
        if value is not None and not all(value.partition(":")):
            raise ValueError("expected module:attribute, for example workers.demo:server")
        return value

    @field_validator("snapshot_headers")
    @classmethod
    def _are_header_names(cls, value: str) -> str:
        if not all(_HEADER_NAME.fullmatch(name) for name in _parts(value)):
            raise ValueError("expected names of HTTP headers with commas between them")
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
                raise ValueError(f"key {number} is there twice")
        return value

    @model_validator(mode="after")
    def _fit_each_other(self) -> Settings:
        if self.is_in_memory and (self.broker_url or self.result_backend):
            name = "BROKER_URL" if self.broker_url else "RESULT_BACKEND"
            raise ValueError(
                f"{ENV_PREFIX}{name} is set beside {ENV_PREFIX}REDIS_URL={MEMORY_URL}, which runs jobs in the server's "
                "process and uses neither a broker nor a result backend: unset one of them"
            )
        if self.default_ttl_ms > self.max_ttl_ms:
            raise ValueError(f"{ENV_PREFIX}DEFAULT_TTL_MS is above {ENV_PREFIX}MAX_TTL_MS")
        if (secret := self.header_names & _SECRET_HEADERS) and self.encryption_keys is None:
            raise ValueError(
                f"{ENV_PREFIX}SNAPSHOT_HEADERS names {', '.join(sorted(secret))}, which must not be kept readable: "
                f"set {ENV_PREFIX}ENCRYPTION_KEYS; {HOW_TO_MAKE_A_KEY}"
            )
        return self

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
    def celery_broker_url(self) -> str:
        """The broker in the form that kombu reads."""
        return celery_url(self.broker_url or self.redis_url)

    @property
    def celery_result_backend(self) -> str:
        """The result backend in the form that Celery reads."""
        if self.is_in_memory:
            return "disabled://"  # the store keeps results itself
        return celery_url(self.result_backend or self.redis_url)

    @property
    def header_names(self) -> frozenset[str]:
        """The allowlist of request headers, in lower case."""
        return frozenset(name.lower() for name in _parts(self.snapshot_headers))

    @property
    def allowed_host_names(self) -> tuple[str, ...]:
        """The further names by which clients reach the server."""
        return tuple(_parts(self.allowed_hosts))

    @property
    def allowed_origin_names(self) -> tuple[str, ...]:
        """The further origins of web pages that may use the server."""
        return tuple(_parts(self.allowed_origins))

    @property
    def key_ring(self) -> tuple[str, ...]:
        """The encryption keys, newest first; empty where there are none."""
        return () if self.encryption_keys is None else tuple(_parts(self.encryption_keys.get_secret_value()))


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def celery_url(url: str) -> str:
    """A Redis URL as Celery and kombu spell it; others stay as they are.

    >>> celery_url("unix:///run/store.sock?db=2")
    'redis+socket:///run/store.sock?virtual_host=2'
    >>> celery_url("amqp://guest@localhost//")
    'amqp://guest@localhost//'

    Args:
        url: redis-py's form (``redis://``, ``rediss://``, ``unix://``) or any other broker's.
    """
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    db = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={db}"
