"""Django's database connections, in threads for which Django opens and ends no request."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

_PACKAGE: Final = "django_celery_results"


@contextmanager
def fresh_connections(backend: object) -> Generator[None]:
    """Do for the calling thread's connections what Django does around a request, where a result backend uses them.

    Django has one connection a database and thread, and looks only between requests whether it is still good. A thread
    without requests would keep a connection that the database has closed, and fail for ever.

    Args:
        backend: Celery's result backend, which is called in the block.
    """
    if not any(kind.__module__.partition(".")[0] == _PACKAGE for kind in type(backend).__mro__):
        yield
        return
    django_db: Any = sys.modules["django.db"]
    django_db.close_old_connections()
    try:
        yield
    finally:
        django_db.close_old_connections()
