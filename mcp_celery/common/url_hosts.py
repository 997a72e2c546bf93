"""The addresses in URLs that name several servers: Sentinels, or nodes of a Redis Cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import SplitResult, unquote

Host = tuple[str, int]
Split = Callable[[str], tuple[SplitResult, int | None]]
"""Gives the parts of a URL and its port; raises a ValueError that shows no value."""


def read_host(text: str, split: Split, *, whose: str, default_port: int) -> Host:
    """Read one address.

    Args:
        text: The address.
        split: Reads it.
        whose: The kind of server, for the error.
        default_port: The port of an address without one.

    Raises:
        ValueError: It cannot be used. The text shows no part of it.
    """
    parts, port = split(f"//{text.strip()}")
    host = unquote(parts.hostname or "")
    if not host:
        raise ValueError(f"the address of {whose} is empty")
    return host, port or default_port


def shown(hosts: Sequence[Host]) -> str:
    """Addresses, for people."""
    return ", ".join(f"{host}:{port}" for host, port in hosts)


def have_one_in_common(hosts: Sequence[Host], others: Sequence[Host]) -> bool:
    """Whether an address is in both lists."""
    return not {(host.lower(), port) for host, port in hosts}.isdisjoint((host.lower(), port) for host, port in others)
