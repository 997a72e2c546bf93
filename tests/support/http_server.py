"""An HTTP server in a test's own process, for the other side of what is tested."""

from __future__ import annotations

import sys
from http.server import ThreadingHTTPServer
from typing import Any


class LocalServer(ThreadingHTTPServer):
    """A server whose clients may leave before they are answered.

    The library would print a traceback for each that has, from a thread of its own, amid the output of the next test.
    """

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what is no lost connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)
