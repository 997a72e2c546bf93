"""Finding a user's server: the module or file that is named, and the server in it."""

from __future__ import annotations

import functools
import importlib
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Final

from mcp_celery.common.import_path import add_current_folder, put_on_path
from mcp_celery.components.source import ComponentSource
from mcp_celery.errors import ConfigurationError
from mcp_celery.server.celery_tasks import CeleryTasks, source_of, tasks_of

_NOT_THEIRS: Final = ("<frozen importlib", str(Path(__file__).parents[1]), importlib.__file__)
"""What the files of frames begin with that are not of the user's code."""
_HOW_TO_MAKE_ONE: Final = (
    "make one with mcp_celery.TaskServer, or give a FastMCP server add_extension(mcp_celery.fastmcp.TasksExtension())"
)


class ServerNotFoundError(ConfigurationError):
    """There is no such module or file."""


class ServerImportError(ConfigurationError):
    """The module of the server raised an exception while it was imported; ``__cause__`` is that exception."""


@functools.cache
def load_source(spec: str) -> ComponentSource:
    """Import a server.

    Args:
        spec: ``module:attribute``, for example ``workers.demo:server``, or ``path/to/file.py:attribute``, whose folder
            is put on the import path. A module with exactly one server needs no attribute.

    Raises:
        ServerNotFoundError: There is no such module or file.
        ServerImportError: The module raised an exception.
        ConfigurationError: In one line: the attribute is wrong, or it is not an MCP server.
    """
    name, _colon, attribute = spec.partition(":")
    if not name:
        raise ServerNotFoundError(f"{spec!r} is not of the form module:attribute, for example workers.demo:server")
    module_name = _module_of_file(Path(name)) if name.endswith(".py") else name
    module = _import(module_name)
    found = getattr(module, attribute, None) if attribute else _only_server(module)
    if found is None:
        raise ConfigurationError(f"module {module_name!r} has no attribute {attribute!r}")
    try:
        source = source_of(found)
    except ConfigurationError:
        raise ConfigurationError(
            f"{spec!r} is a {type(found).__name__}, which cannot be served: {_HOW_TO_MAKE_ONE}"
        ) from None
    with suppress(ConfigurationError):  # it may run no tasks
        tasks_of(source.server).spec = spec
    return source


def load_tasks(spec: str) -> CeleryTasks:
    """Import a server as a worker does, and find its task side.

    Args:
        spec: As for :func:`load_source`.

    Raises:
        ConfigurationError: As for :func:`load_source`, or the server runs no tasks.
    """
    add_current_folder()
    return tasks_of(load_source(spec).server)


def _module_of_file(path: Path) -> str:
    """The name of a file's module, whose packages' folder is put on the import path."""
    if not path.is_file():
        raise ServerNotFoundError(f"there is no file {str(path)!r}")
    folder, parts = path.resolve().parent, [path.stem]
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    put_on_path(folder)
    return ".".join(parts)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ServerImportError(f"cannot import {name!r}: {error}") from error
        raise ServerNotFoundError(f"cannot import {name!r}: there is no module {error.name!r}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"cannot import {name!r}: {error}{_place_of(error)}") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ServerImportError(f"cannot import {name!r}: {reason}") from error


def _place_of(error: Exception) -> str:
    """The line of the user's code that this package refuses."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(_NOT_THEIRS)]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _only_server(module: ModuleType) -> object:
    servers = dict(_servers(module))
    if len(servers) == 1:
        return next(iter(servers.values()))
    if not servers:
        raise ConfigurationError(f"module {module.__name__!r} has no MCP server: {_HOW_TO_MAKE_ONE}")
    names = ", ".join(sorted(servers))
    raise ConfigurationError(f"module {module.__name__!r} has several MCP servers: name one of {names} after a colon")


def _servers(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The servers of a module by the first of their names."""
    seen: set[int] = set()
    for name, value in vars(module).items():
        try:
            source_of(value)
        except ConfigurationError:
            continue
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value
