"""Which distribution of PyPI this package is, and whether another one with the same import name is installed too."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Final

PACKAGE: Final = "mcp-celery-backend"
"""The name of this distribution on PyPI."""
OTHER_PACKAGE: Final = "mcp-celery"
"""Another project's distribution, whose files go into the same folder ``mcp_celery``."""


def package_conflicts() -> Iterator[str]:
    """Explain that the other project's distribution is installed beside this one, where it is.

    It replaces ``mcp_celery/__init__.py`` and ``mcp_celery/errors.py``. Where it was installed last, nothing of this
    package can be imported, and this function neither: ``docs/troubleshooting.md`` says how that looks.
    """
    try:
        other = version(OTHER_PACKAGE)
    except PackageNotFoundError:
        return
    yield (
        f"{OTHER_PACKAGE} {other} is installed beside {PACKAGE}: it is another project with the same import name, "
        f"mcp_celery, and replaces files of this one. Run `pip uninstall -y {OTHER_PACKAGE} {PACKAGE}`, then "
        f"`pip install {PACKAGE}`"
    )
