"""``--log-config``: the logging configuration of a server, from a file."""

from __future__ import annotations

import importlib
import json
import logging.config
from pathlib import Path

from mcp_celery.cli.errors import StartError


def configure_logging(path: Path) -> None:
    """Configure logging as a file says, like uvicorn's ``--log-config``.

    Args:
        path: ``.json`` and ``.yaml`` hold what ``logging.config.dictConfig`` takes; any other name is a file in the
            form of ``logging.config.fileConfig``.

    Raises:
        StartError: The file cannot be read or used.
    """
    try:
        match path.suffix:
            case ".json":
                logging.config.dictConfig(json.loads(path.read_text(encoding="utf-8")))
            case ".yaml" | ".yml":
                yaml = importlib.import_module("yaml")
                logging.config.dictConfig(yaml.safe_load(path.read_text(encoding="utf-8")))
            case _:
                logging.config.fileConfig(path, disable_existing_loggers=False)
    except ModuleNotFoundError as error:
        hint = ": `pip install pyyaml`" if error.name == "yaml" else ""
        raise StartError(f"--log-config {path}: {error}{hint}") from error
    except Exception as error:  # a configuration names classes, which may raise anything
        reason = " ".join(f"{error}: {error.__cause__}".split()) if error.__cause__ else " ".join(str(error).split())
        raise StartError(f"--log-config {path}: {reason or type(error).__name__}") from error
