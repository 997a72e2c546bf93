"""Django as the owner of a result backend, in this process: a database at a time, with the tables of its package."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import django  # pyright: ignore[reportMissingTypeStubs]
from django.conf import settings  # pyright: ignore[reportMissingTypeStubs]


@contextmanager
def django_database(place: str) -> Generator[None]:
    """Let Django have one database.

    Args:
        place: The URL of a PostgreSQL database, or the path of an SQLite file.
    """
    if not settings.configured:
        settings.configure(
            SECRET_KEY="not-a-secret",
            USE_TZ=True,
            INSTALLED_APPS=["django_celery_results"],
            DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        )
        django.setup()
    from django.core import management  # pyright: ignore[reportMissingTypeStubs]  # noqa: PLC0415
    from django.db import connections  # pyright: ignore[reportMissingTypeStubs]  # noqa: PLC0415

    handler: Any = connections
    handler.settings["default"] = handler.configure_settings({"default": database(place)})["default"]
    if "default" in vars(handler._connections._storage):
        del handler["default"]
    try:
        command: Any = management
        command.call_command("migrate", verbosity=0)
        yield
    finally:
        handler["default"].close()
        del handler["default"]


def database(place: str) -> dict[str, Any]:
    """An entry of Django's ``DATABASES``, of a place as in :func:`django_database`."""
    url = urlsplit(place)
    if not url.scheme:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": place}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": url.hostname,
        "PORT": url.port,
        "USER": url.username,
        "NAME": url.path[1:],
    }
