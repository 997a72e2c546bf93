"""A result backend of Celery that keeps the results of a server's jobs beside its records.

Celery gives a result backend only the id of a job, which does not name the server. So a server and its workers say
which namespace they mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:

    class _KeyValues:
        pass
else:
    from celery.backends.base import KeyValueStoreBackend as _KeyValues


class OwnResults(_KeyValues, ABC):
    """A result backend with a view for each namespace. Threads may share one."""

    @abstractmethod
    def of_namespace(self, namespace: str) -> Self:
        """The same backend, where jobs are those of one server's tasks.

        Args:
            namespace: The server's.
        """

    @abstractmethod
    def close(self) -> None:
        """Close its connections. The next call opens others."""
