"""The project's Celery app."""

from __future__ import annotations

from celery import Celery

import mcp_celery  # before the app, which shall be the default one all the same

app = Celery("django-host")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["tests.support.django_host"])
mcp_celery.install(app, "tests.support.django_host.mcp:server")
