"""The one place that chooses a :class:`Revision` by its version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mcp.shared.exceptions import MCPError
from mcp_types import METHOD_NOT_FOUND
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, LATEST_MODERN_VERSION, MODERN_PROTOCOL_VERSIONS

from mcp_celery.protocol.handshake import HandshakeRevision
from mcp_celery.protocol.revision import RequestContext, Revision, TaskRevision
from mcp_celery.protocol.v2025_11_25.revision import Revision20251125
from mcp_celery.protocol.v2025_11_25.wire import VERSION
from mcp_celery.protocol.v2026_07_28.revision import Revision20260728

REQUESTING_REVISION: Final = Revision20251125(VERSION)
"""The last revision at which the SDK sends questions as requests and has a model of tasks.

Jobs ask at this revision, and answers to questions have its form. Tasks that are submitted in the server's own process
are shown in its form.
"""
RESULT_VERSION: Final = LATEST_MODERN_VERSION
"""The version in whose form a result is stored that no request shapes: that of an exposed job."""

_REVISIONS: Final[Mapping[str, Revision]] = {
    **{version: HandshakeRevision(version) for version in HANDSHAKE_PROTOCOL_VERSIONS},
    **{version: Revision20260728(version) for version in MODERN_PROTOCOL_VERSIONS},
    REQUESTING_REVISION.version: REQUESTING_REVISION,
}
TASK_VERSIONS: Final = frozenset(
    version for version, revision in _REVISIONS.items() if isinstance(revision, TaskRevision)
)
"""The versions that have tasks."""


def revision_named(version: str) -> Revision:
    """The revision of a version; one without tasks for a version that this release does not know."""
    return _REVISIONS.get(version) or HandshakeRevision(version)


def revision_of(ctx: RequestContext) -> Revision:
    """The revision of a request."""
    return revision_named(ctx.protocol_version)


def task_revision_of(ctx: RequestContext) -> TaskRevision:
    """The revision of a request that only revisions with tasks have.

    Raises:
        MCPError: -32601 at another revision.
    """
    revision = revision_of(ctx)
    if not isinstance(revision, TaskRevision):
        raise MCPError(METHOD_NOT_FOUND, "Method not found", ctx.method)
    return revision
