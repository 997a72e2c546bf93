"""The shop's Celery app: ``celery -A workers.existing_app worker``."""

from __future__ import annotations

from celery import Celery

from mcp_celery import install

app = Celery("shop", include=["workers.existing_app.reports"])
app.config_from_object("workers.existing_app.settings")

# The shop's workers run the server's jobs too. The module is imported when a worker starts, and by no other process.
install(app, "workers.existing_app.mcp:server")
