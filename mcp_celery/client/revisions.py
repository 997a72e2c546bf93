"""The one place that chooses what speaks for a session's revision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mcp.client.session import ClientSession

from mcp_celery.client.session import TaskChannel
from mcp_celery.client.v2025_11_25 import CoreTaskChannel
from mcp_celery.client.v2026_07_28 import ExtensionChannel
from mcp_celery.client.wire import TaskState

PUSHED: Final[Mapping[str, type[TaskState]]] = {
    channel.notification: channel.state_type for channel in (ExtensionChannel, CoreTaskChannel)
}
"""The notifications about tasks, in any revision."""


def channel_of(session: ClientSession, *, busy_seconds: float) -> TaskChannel:
    """The tasks methods on a session that has been initialized."""
    kind = CoreTaskChannel if CoreTaskChannel.is_spoken_on(session) else ExtensionChannel
    return kind(session, busy_seconds=busy_seconds)
