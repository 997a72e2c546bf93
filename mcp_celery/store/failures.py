"""Texts for the log about a failure of the store: its kind, its text, and what an operator can do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import redis

from mcp_celery.store.unreadable import reason_of

_ADVICE: Final[Sequence[tuple[re.Pattern[str], str]]] = (
    (
        re.compile("CERTIFICATE_VERIFY_FAILED.*(hostname|IP address) mismatch", re.IGNORECASE),
        "use the name in MCP_CELERY_REDIS_URL for which the certificate was made",
    ),
    (
        re.compile("CERTIFICATE_VERIFY_FAILED", re.IGNORECASE),
        "name the certificate of its authority in MCP_CELERY_REDIS_URL: ?ssl_ca_certs=FILE",
    ),
    (
        re.compile("CERTIFICATE_REQUIRED", re.IGNORECASE),
        "the server asks for a client certificate: set ssl_certfile and ssl_keyfile in MCP_CELERY_REDIS_URL",
    ),
    (
        re.compile("SentinelRefusalError"),
        "set the options sentinel_username and sentinel_password in MCP_CELERY_REDIS_URL",
    ),
    (
        re.compile("knows no such master"),
        "use the name in MCP_CELERY_REDIS_URL under which the Sentinels watch it (sentinel monitor)",
    ),
    (
        re.compile("ClusterRefusalError"),
        "check user and password: MCP_CELERY_REDIS_URL, MCP_CELERY_REDIS_PASSWORD_FILE or MCP_CELERY_REDIS_CREDENTIALS",
    ),
    (
        re.compile("cluster support disabled"),
        "MCP_CELERY_REDIS_URL names a server that is no node of a cluster: use redis:// for it",
    ),
    (
        re.compile("MovedError"),
        "MCP_CELERY_REDIS_URL names a node of a Redis Cluster: use redis+cluster://",
    ),
    (
        re.compile("TryAgainError|AskError"),
        "the slot of the namespace is on its way to another shard of the cluster",
    ),
    (
        re.compile("NOREPLICAS"),
        "the master has fewer good replicas than its min-replicas-to-write",
    ),
    (
        re.compile("ReplicaError"),
        "MCP_CELERY_REDIS_URL must lead to the master; where Sentinels watch it, use sentinel://",
    ),
    (
        re.compile("AuthenticationError|invalid username-password|NOAUTH|Authentication required"),
        "check user and password: MCP_CELERY_REDIS_URL, MCP_CELERY_REDIS_PASSWORD_FILE or MCP_CELERY_REDIS_CREDENTIALS",
    ),
    (
        re.compile("NoPermissionError|NOPERM"),
        "give its Redis user the rights that docs/redis.md lists",
    ),
)

_REFUSED: Final = re.compile(
    "invalid username-password|WRONGPASS|NOAUTH|Authentication required|invalid password|no password is set|"
    "HELLO must be called with the client already authenticated|"
    "AUTH <password> called without any password",
    re.IGNORECASE,
)


def is_refusal(error: BaseException) -> bool:
    """Whether the server has refused user or password. A source of passwords that fails may work again later."""
    return isinstance(error, redis.AuthenticationError) and bool(_REFUSED.search(str(error)))


def described(error: BaseException) -> str:
    """A failure in one line, with advice where there is some.

    Its text may name the address, and holds no password.
    """
    reason = reason_of(error)
    for pattern, advice in _ADVICE:
        if pattern.search(reason):
            return f"{reason}; {advice}"
    return reason
