"""Whether a server is the master, as its answers say, and the address that a connection has."""

from __future__ import annotations

import re
from typing import Any, Final

import redis
from redis.exceptions import MasterDownError

from mcp_celery.common.redis_hello import said_of_itself
from mcp_celery.store.masters import BlockingMasterFinder, MasterFinder

_OF_REPLICA: Final = re.compile(r"\bREADONLY\b|You can't write against a read only replica|\bMASTERDOWN\b")
"""What a replica answers to a write. Redis 6.2 puts it into the text of a script's error."""
_CLASSES: Final = (redis.ReadOnlyError, MasterDownError)
"""The same, where redis-py has a class for it and has removed the code from the text."""


class ReplicaError(redis.ConnectionError):
    """The server is a replica and has run nothing. redis-py's ``Retry`` sends the command once more."""


def is_of_replica(error: redis.ResponseError, *, has_sentinels: bool) -> bool:
    """Whether an error means that the server is not the master, or may be it no more."""
    if isinstance(error, _CLASSES) or _OF_REPLICA.search(str(error)):
        return True
    return has_sentinels and "NOREPLICAS" in str(error)  # Sentinels have given its replicas to another server


def is_elsewhere(
    error: redis.ResponseError, connection: Any, finder: MasterFinder | BlockingMasterFinder | None
) -> bool:
    """Whether a server's error means that the master is, or may be, elsewhere. Then the server has run nothing.

    Args:
        error: The error.
        connection: The connection to it.
        finder: Finds the master, and learns of the error. None: the URL names it.
    """
    if is_of_replica(error, has_sentinels=finder is not None):
        return True
    return finder is not None and finder.search.is_elsewhere(error, address_of(connection))


def direct(connection: Any, address: tuple[str, int]) -> None:
    """Have a connection that is not open go to an address."""
    connection.host, connection.port = address


def address_of(connection: Any) -> tuple[str, int]:
    """Where a connection over the network goes."""
    return connection.host, connection.port


def require_still_master(connection: Any, known: tuple[str, int] | None) -> None:
    """See that the master has not moved while a connection was made.

    Args:
        connection: The connection.
        known: Where the master was found last; None: it is not known.

    Raises:
        ReplicaError: It is elsewhere by now.
    """
    if known is not None and known != address_of(connection):
        raise ReplicaError(f"{connection.host}:{connection.port} is not the master any more")


def require_master(connection: Any, reply: Any) -> None:
    """See from the answer to HELLO that a server is the master.

    Raises:
        ReplicaError: It is a replica.
    """
    role = said_of_itself(reply).get(b"role", b"master").decode()
    if role != "master":
        raise ReplicaError(f"{connection.host}:{connection.port}, which was named as the master, is a {role}")
