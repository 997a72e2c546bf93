"""``mcp-celery init``: a project to start from, written into a folder.

What the project shares with the deployment of the checkout (`Procfile`, `config/`, `workers/asgi.py`) is copied from
there into the wheel, and changed here where it names the server.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from celery import Celery

from mcp_celery.broker.naming import slug
from mcp_celery.cli.errors import RunError, StartError
from mcp_celery.cli.output import typed

PACKAGE: Final = Path(__file__).parents[1]
SHIPPED: Final = PACKAGE / "starter"
SETTINGS: Final = ("__init__.py", "env.example", "flowerconfig.py", "logging.json", "redis.conf")
"""Files of the folder ``config``; a server with an app of its own has ``celeryconfig.py``, too."""
STARTER: Final = "starter"
"""The name of the server in the files."""
SAMPLE_APP: Final = "from shop import app"


@dataclass(frozen=True, slots=True)
class _Written:
    """One file of a project.

    Args:
        name: Its path in the project.
        source: Its path among the files of the package.
        changes: What is written in the place of what.
    """

    name: str
    source: str
    changes: Mapping[str, str]

    def text(self) -> str:
        """The files to write."""
        shipped = SHIPPED / self.source
        # In a checkout, what the wheel has a copy of stands where it is used.
        text = (shipped if shipped.exists() else PACKAGE.parent / self.source).read_text(encoding="utf-8")
        for found, put in self.changes.items():
            if found not in text:
                raise RunError(f"{self.source} of this installation has no {found!r}: install the package again")
            text = text.replace(found, put)
        return text


def init(folder: Path, existing_app: bool, app: str | None, force: bool) -> None:
    """Write a project.

    Args:
        folder: Where; it is made where there is none.
        existing_app: Whether the server belongs to a Celery app that exists.
        app: That app, as ``celery -A`` takes it; None: a small one is written, too.
        force: Whether to write over files.
    """
    folder = folder.absolute()
    name = _name_of(folder)
    files = list(_existing(name, app) if existing_app or app else _new(name))
    texts = {folder / one.name: one.text() for one in files}
    written = _write(texts, force=force)
    click.echo(f"Wrote {len(written)} files to {folder}:" if written else f"{folder} has all of these files already:")
    for path in written or texts:
        click.echo(f"  {path.relative_to(folder)}")
    click.echo("To run it, in that folder:")
    commands = (f"{typed('celery')} -A mcp_worker worker -Q mcp.{name}", f"{typed('mcp-celery')} serve mcp_server.py")
    for command in commands if existing_app or app else (f"{typed('mcp-celery')} dev server.py",):
        click.echo(f"  {command}")
    click.echo("README.md has the next steps.")


def _name_of(folder: Path) -> str:
    try:
        return slug(folder.name)
    except ValueError:
        return STARTER


def _new(name: str) -> Iterator[_Written]:
    named = {f'TaskServer("{STARTER}")': f'TaskServer("{name}")', f"mcp.{STARTER}": f"mcp.{name}"}
    yield _Written("server.py", "server.py", named)
    yield _Written("README.md", "README.md", {f"# {STARTER}\n": f"# {name}\n"})
    yield _Written("config/celeryconfig.py", "config/celeryconfig.py", {})
    yield from _deployment("server", {"workers.demo:server": "server:server"}, {})


def _existing(name: str, app: str | None) -> Iterator[_Written]:
    module, attribute = ("shop", "app") if app is None else _found(app)
    imported = f"from {module} import {attribute}{'' if attribute == 'app' else ' as app'}"
    queue = {f"mcp.{STARTER}": f"mcp.{name}"}
    server = {f'TaskServer("{STARTER}"': f'TaskServer("{name}"', SAMPLE_APP: imported, **queue}
    yield _Written("mcp_server.py", "existing_app/mcp_server.py", server)
    yield _Written("mcp_worker.py", "existing_app/mcp_worker.py", {SAMPLE_APP: imported, **queue})
    if app is None:
        yield _Written("shop.py", "existing_app/shop.py", {})
    yield _Written("README.md", "existing_app/README.md", {f"# {STARTER}\n": f"# {name}\n", **queue})
    # The app has its own configuration, and says by itself what its workers run.
    env = {
        "\nMCP_CELERY_SERVER=workers.demo:server": "\n#MCP_CELERY_SERVER=",
        "\nCELERY_CONFIG_MODULE=config.celeryconfig": "\n#CELERY_CONFIG_MODULE=",
    }
    worker = {
        "-A mcp_celery worker": f"-A mcp_worker worker -Q mcp.{name}",
        "-A mcp_celery flower": "-A mcp_worker flower",
    }
    yield from _deployment("mcp_server", env, worker)


def _deployment(module: str, env: Mapping[str, str], processes: Mapping[str, str]) -> Iterator[_Written]:
    yield _Written("Procfile", "Procfile", processes)
    yield _Written("workers/__init__.py", "workers/__init__.py", {})
    yield _Written("workers/asgi.py", "workers/asgi.py", {"from workers.demo import": f"from {module} import"})
    for name in SETTINGS:
        yield _Written(f"config/{name}", f"config/{name}", env if name == "env.example" else {})
    yield _Written(".gitignore", "gitignore", {})


def _found(spec: str) -> tuple[str, str]:
    """The module and the attribute of a Celery app, as ``celery -A`` finds it.

    Raises:
        StartError: No module or attribute of that name is a Celery app.
    """
    name, colon, attribute = spec.partition(":")
    for module_name in (name, f"{name}.celery"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if module_name == name or error.name != module_name:
                raise StartError(f"-A {spec}: cannot import {module_name!r}: {error}") from error
            continue
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise StartError(f"-A {spec}: cannot import {module_name!r}: {reason}") from error
        names = [attribute] if colon else ["app", "celery", *sorted(vars(module))]
        for one in names:
            if isinstance(getattr(module, one, None), Celery):
                return module_name, one
        if colon:
            break
    raise StartError(f"-A {spec}: there is no Celery app; name it as module:attribute")


def _write(texts: Mapping[Path, str], *, force: bool) -> list[Path]:
    """Write files, all or, where one of them is in the way, none.

    Returns:
        Those that were written: one that says the same already is left, and so is a package's ``__init__.py``.

    Raises:
        StartError: A file is there that says something else.
        RunError: A file cannot be written.
    """
    try:
        needed = {path: text for path, text in texts.items() if not _is_there(path, text)}
        taken = [str(path) for path in needed if path.exists() or path.is_symlink()]
        if taken and not force:
            exist = "exists" if len(taken) == 1 else "exist"
            raise StartError(f"nothing was written: {', '.join(taken)} {exist} already; --force overwrites")
        for path, text in needed.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if force:
                path.unlink(missing_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise RunError(f"{error.filename} cannot be written: {error.strerror}") from error
    return list(needed)


def _is_there(path: Path, text: str) -> bool:
    if not path.is_file():
        return False
    return path.name == "__init__.py" or path.read_bytes() == text.encode()
