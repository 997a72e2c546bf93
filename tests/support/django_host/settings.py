"""The project's settings, with Celery's among them."""

from __future__ import annotations

import os

from tests.support.django_results import database

SECRET_KEY = "not-a-secret"
USE_TZ = True
TIME_ZONE = "Europe/Berlin"
INSTALLED_APPS = ["tests.support.django_host", "django_celery_results"]
DATABASES = {"default": database(os.environ["DJANGO_HOST_DATABASE"])}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CELERY_BROKER_URL = os.environ["HOST_BROKER"]
CELERY_RESULT_BACKEND = os.environ.get("HOST_RESULTS", os.environ["HOST_BROKER"])
CELERY_TASK_DEFAULT_QUEUE = os.environ["HOST_NAME"]
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
