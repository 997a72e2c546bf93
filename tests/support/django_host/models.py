"""What the project keeps."""

from __future__ import annotations

from typing import Any

from django.db import models  # pyright: ignore[reportMissingTypeStubs]

Model: Any = models.Model


class Order(Model):
    """An order."""

    year: Any = models.IntegerField()
    objects: Any
