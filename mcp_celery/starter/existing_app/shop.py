"""A small Celery app, which stands for the one that you have: `mcp-celery init --existing-app -A YOURS` takes yours."""

from __future__ import annotations

import os

from celery import Celery

redis_url = os.environ.get("SHOP_REDIS_URL", "redis://127.0.0.1:6379/0")
app = Celery("shop", broker=redis_url, backend=redis_url)


@app.task(name="shop.count")
def count(warehouse: str) -> int:
    """Count what is in a warehouse."""
    return len(warehouse)
