"""Celery's result backend for Redis Sentinel, so that the options of its URL and credentials that change have effect.

Celery 5.7 takes only user, password and database from the URLs of Sentinels, and ends with ``KeyError: 'password'``
where a ``CredentialProvider`` gives the password.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:

    class _SentinelBackend:
        def _params_from_url(self, url: str, defaults: Mapping[str, Any]) -> dict[str, Any]: ...
else:
    from celery.backends.redis import SentinelBackend as _SentinelBackend

_ADDRESS: Final = frozenset({"host", "port"})


class SentinelResults(_SentinelBackend):
    """Celery's, with everything that the URLs say. Each of them says the same of the master."""

    def _params_from_url(self, url: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
        found = super()._params_from_url(url, {"password": None, **defaults})
        of_master = {name: value for name, value in found["hosts"][0].items() if name not in _ADDRESS}
        found |= of_master
        if "credential_provider" in found:
            for name in ("username", "password"):
                found.pop(name, None)
        return found
