"""The same in a Celery app of somebody else's, whose workers have Celery's own consumer."""

from __future__ import annotations

import os
from typing import cast

from celery import Celery

from mcp_celery import Settings, install
from tests.support.servers.deploys import VERSION_VARIABLE, Version, build

settings = Settings.load()
app = Celery("hosted", broker=settings.celery_broker_url, backend=settings.celery_result_backend)
server = build(cast(Version, os.environ[VERSION_VARIABLE]), celery=app, settings=settings)
install(app, f"{__name__}:server")
