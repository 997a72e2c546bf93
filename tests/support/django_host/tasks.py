"""The project's own jobs."""

from __future__ import annotations

from celery import shared_task


@shared_task(name="django_host.whose")
def whose() -> str:
    return str(whose.app.main)
