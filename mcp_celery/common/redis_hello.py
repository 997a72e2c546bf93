"""What a Redis server says of itself in its answer to ``HELLO``, which every user may send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def said_of_itself(reply: Any) -> Mapping[bytes, Any]:
    """The values of an answer to ``HELLO``, by name.

    Args:
        reply: The answer. RESP2 has a list of names and values.
    """
    flat: Any = reply
    return reply if hasattr(reply, "keys") else dict(zip(flat[::2], flat[1::2], strict=True))


def is_in_cluster_mode(reply: Any) -> bool:
    """Whether a server takes only commands whose keys are in one slot.

    >>> is_in_cluster_mode([b"server", b"redis", b"mode", b"cluster"])
    True

    Args:
        reply: Its answer to ``HELLO``.
    """
    return said_of_itself(reply).get(b"mode") == b"cluster"
