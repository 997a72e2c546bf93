"""A job's view of the protocol revision of the request that created its task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from mcp.shared.exceptions import MCPError
from mcp_types import ErrorData

from mcp_celery.engine import JSONObject


class CallerRevision(Protocol):
    """The revision that the task's client speaks."""

    has_fixed_ttl: ClassVar[bool]
    """Whether a task keeps the time to live that its creation was answered with."""

    @property
    def version(self) -> str:
        """Its name on the wire."""
        ...

    def crash(self, text: str) -> MCPError:
        """The answer to a request whose component raised an exception.

        Args:
            text: The exception's text.
        """
        ...

    def dump_error(self, error: ErrorData) -> JSONObject:
        """An error as JSON values, without the fields that the SDK leaves out."""
        ...


@dataclass(frozen=True, slots=True)
class JobRevisions:
    """The protocol revisions that jobs deal with.

    Attributes:
        named: Gives the revision of a version.
        asking_version: The last version at which the SDK sends questions as requests instead of returning them.
    """

    named: Callable[[str], CallerRevision]
    asking_version: str
