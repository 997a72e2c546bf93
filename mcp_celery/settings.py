"""The settings, read from ``MCP_CELERY_*`` environment variables. Every value is checked before anything starts."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mcp_celery.errors import ConfigurationError

ENV_PREFIX: Final = "MCP_CELERY_"
_REDIS_SCHEMES: Final = ("redis", "rediss", "unix")
_REFUSED_RESULT_BACKENDS: Final = {
    "rpc": "it delivers each result once, to the process that sent the job, and tasks are read by any server",
    "disabled": "it keeps no results",
}
_NAMESPACE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_KEY_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:{}-]{1,100}")


class Settings(BaseSettings):
    """Settings of one server and its workers; each field is the variable ``MCP_CELERY_`` + its upper-case name."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis or Valkey for task records and push.")
    broker_url: str | None = Field(None, description="Celery broker. Default: the Redis URL.")
    result_backend: str | None = Field(None, description="Celery result backend. Default: the Redis URL.")
    key_prefix: str = Field("mcp_celery", description="First part of every Redis key.")
    namespace: str | None = Field(None, description="Sets servers on one broker apart. Default: the server's name.")
    server: str | None = Field(None, description="The server that workers run, as `module:attribute`.")
    queue: str | None = Field(None, description="Celery queue of the jobs. Default: `mcp.{namespace}`.")
    default_ttl_ms: int = Field(3_600_000, gt=0, description="How long a task is kept when nobody says.")
    max_ttl_ms: int = Field(86_400_000, gt=0, description="The longest a task is kept, whoever asks.")
    poll_interval_ms: int = Field(1_000, gt=0, description="How often clients without push should poll.")
    progress_interval_ms: int = Field(
        100, gt=0, description="Shortest time between two pushed progress messages of one task."
    )
    snapshot_headers: str = Field(
        "", description="Comma-separated names of HTTP request headers that a job may see in `ctx.headers`."
    )
    store_timeout_ms: int = Field(1_500, gt=0, description="How long a request waits for the store before -32603.")
    publish_timeout_ms: int = Field(1_500, gt=0, description="How long a request waits for the broker before -32603.")
    redis_max_connections: int = Field(
        32, gt=1, description="Connections of one process to Redis; requests wait when all are busy."
    )
    max_listen_tasks: int = Field(1_000, gt=0, description="Task ids that one `subscriptions/listen` may name.")

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in _REDIS_SCHEMES:
            raise ValueError("expected redis://, rediss:// or unix://")
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

    @model_validator(mode="after")
    def _fit_each_other(self) -> Settings:
        if self.default_ttl_ms > self.max_ttl_ms:
            raise ValueError(f"{ENV_PREFIX}DEFAULT_TTL_MS is above {ENV_PREFIX}MAX_TTL_MS")
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
    def celery_broker_url(self) -> str:
        """The broker in the form that kombu reads."""
        return celery_url(self.broker_url or self.redis_url)

    @property
    def celery_result_backend(self) -> str:
        """The result backend in the form that Celery reads."""
        return celery_url(self.result_backend or self.redis_url)

    @property
    def header_names(self) -> frozenset[str]:
        """The allowlist of request headers, in lower case."""
        return frozenset(name.strip().lower() for name in self.snapshot_headers.split(",") if name.strip())


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
