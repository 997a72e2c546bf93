"""Logs when a service is lost and when it answers again, however many calls fail in between."""

from __future__ import annotations

import logging
from typing import Final

MOST_KINDS: Final = 8
"""Kinds of failure that one outage logs. A service that fails in ever new ways fills no log."""


class Outage:
    """Whether a service is lost now.

    Args:
        service: What is lost, with the setting that names it.
        logger: Where the beginning and the end are logged.
    """

    def __init__(self, service: str, logger: logging.Logger) -> None:
        self.service = service
        self._logger = logger
        self._kinds: set[str] = set()

    @property
    def is_on(self) -> bool:
        """Whether the last reported call failed."""
        return bool(self._kinds)

    def began(self, kind: str, reason: str) -> None:
        """Note a failed call. The first failure of each kind is logged, once in an outage.

        Args:
            kind: Kind of the failure, for example the name of the exception's class.
            reason: Its text for the log, without secrets.
        """
        if kind in self._kinds or len(self._kinds) >= MOST_KINDS:
            return
        self._kinds.add(kind)
        self._logger.warning("%s failed: %s", self.service, reason)

    def ended(self) -> None:
        """Note that the service has answered."""
        if self._kinds:
            self._kinds = set()
            self._logger.info("%s answers again", self.service)
