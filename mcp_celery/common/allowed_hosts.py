"""The names by which clients may reach a server: its ``Host`` and ``Origin`` headers.

By DNS rebinding, a web page makes its own name resolve to the server's address, and so has a visitor's browser send
requests to a server that the page could not reach itself. The browser sends that name in ``Host`` and ``Origin``, so a
server that accepts only known names is safe.

The command line checks its options with this module, so it imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Self

ANY: Final = "*"
LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
"""Names that always lead to the machine itself."""
EVERY_ADDRESS: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - looked up, not bound
"""Addresses to listen on that stand for all addresses of the machine. No client sends them as ``Host``."""
HOST_FORM: Final = "a host name or address, with a port or without, or * for any"
ORIGIN_FORM: Final = "scheme://host, with a port or without; :* for any port"

_HOST: Final = re.compile(r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}|\*))?")
_ORIGIN: Final = re.compile(
    r"(?P<origin>[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\]))(?::(?P<port>\d{1,5}|\*))?"
)


def host_pattern(text: str) -> str:
    """Check a name of `AllowedNames.hosts`.

    >>> host_pattern("MCP.example.com"), host_pattern("::1"), host_pattern("mcp.example.com:8443")
    ('mcp.example.com', '[::1]', 'mcp.example.com:8443')

    Args:
        text: A host name, an address, one of them with a port, or ``*``.

    Returns:
        It as ``Host`` headers are compared with it.

    Raises:
        ValueError: It has another form, for example that of a URL.
    """
    lower = text.strip().lower()
    if lower.count(":") > 1 and not lower.startswith("["):
        lower = f"[{lower}]"
    if lower != ANY and not _HOST.fullmatch(lower):
        raise ValueError(f"expected {HOST_FORM}")
    return lower.removesuffix(":*")


def origin_pattern(text: str) -> str:
    """Check a name of `AllowedNames.origins`.

    >>> origin_pattern("https://App.example.com")
    'https://app.example.com'

    Args:
        text: An origin as browsers say it, or one with ``:*`` as its port.

    Returns:
        It as ``Origin`` headers are compared with it.

    Raises:
        ValueError: It has another form, for example that of a URL with a path.
    """
    lower = text.strip().lower()
    if not _ORIGIN.fullmatch(lower):
        raise ValueError(f"expected {ORIGIN_FORM}")
    return lower


@dataclass(frozen=True, slots=True)
class AllowedNames:
    """The values of ``Host`` and ``Origin`` that a server accepts.

    Args:
        hosts: Patterns of `host_pattern`. One without a port allows any port: rebinding changes the name only.
        origins: Patterns of `origin_pattern`. One without a port allows the scheme's own port only.
    """

    hosts: frozenset[str]
    origins: frozenset[str]

    @classmethod
    def listening_on(cls, address: str, *, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> Self:
        """Return the names of a server: this machine's loopback, the address it listens on, and further ones.

        Args:
            address: What the server listens on. An address that stands for all of them adds no name.
            hosts: Further hosts.
            origins: Further origins.

        Raises:
            ValueError: A name is malformed.
        """
        # The zone of a link-local address (fe80::1%eth0) is no part of a Host header.
        own = [] if address in EVERY_ADDRESS else [address.partition("%")[0]]
        return cls(
            frozenset(host_pattern(host) for host in (*LOOPBACK, *own, *hosts)),
            frozenset([*(f"http://{name}:*" for name in LOOPBACK), *(origin_pattern(one) for one in origins)]),
        )

    def allows_host(self, host: str | None) -> bool:
        """Tell whether a request may have this ``Host``.

        >>> names = AllowedNames.listening_on("0.0.0.0", hosts=["mcp.example.com"])
        >>> names.allows_host("mcp.example.com:8000"), names.allows_host("evil.example"), names.allows_host(None)
        (True, False, False)

        Args:
            host: The header; None: the request has none.
        """
        if ANY in self.hosts:
            return True
        found = _HOST.fullmatch((host or "").lower())
        return found is not None and not self.hosts.isdisjoint((found["name"], found[0]))

    def allows_origin(self, origin: str | None) -> bool:
        """Tell whether a request may have this ``Origin``. Only browsers send one.

        >>> names = AllowedNames.listening_on("127.0.0.1", origins=["https://app.example.com"])
        >>> names.allows_origin(None), names.allows_origin("https://app.example.com"), names.allows_origin("null")
        (True, True, False)

        Args:
            origin: The header; None: the request has none.
        """
        if not origin:
            return True
        found = _ORIGIN.fullmatch(origin.lower())
        return found is not None and not self.origins.isdisjoint((found[0], f"{found['origin']}:*"))


def is_loopback(address: str) -> bool:
    """Tell whether an address to listen on can be reached from this machine only.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:
        return False
