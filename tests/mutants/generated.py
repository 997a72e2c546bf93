"""Mutants of Python functions, which mutmut generates and runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.mutants.copy import AT_ONCE, ENVIRONMENT, PYTEST, copy_to, temporary_files
from tests.mutants.verdict import Mutant, Verdict

MODULES: Final = [f"mcp_celery/engine/{name}.py" for name in ("status", "core", "recovery/model", "recovery/reaper")]
ALL_MODULES: Final = ["mcp_celery/engine/*.py", "mcp_celery/store/*.py"]
TESTS: Final = [
    *(f"tests/unit/test_{name}.py" for name in ("status", "recovery", "reaper", "engine")),
    *(f"tests/contract/test_{name}.py" for name in ("engine", "limits", "list", "recovery", "respond", "watch")),
    *(f"tests/contract/test_{name}.py" for name in ("abandoned", "audit", "exposed", "idempotency", "lost_jobs")),
    *(f"tests/contract/test_{name}.py" for name in ("not_started", "operators", "queue_messages", "recent_polls")),
    *(f"tests/contract/test_{name}.py" for name in ("transitions", "turns", "webhooks")),
]
ALL_TESTS: Final = [
    *TESTS,
    *(f"tests/unit/test_{name}.py" for name in ("answers", "codec", "keys", "outcome")),
    *(f"tests/contract/test_{name}.py" for name in ("store", "questions", "bus", "redis_faults", "lifecycle")),
]
_KILLED: Final = {"killed", "timeout"}
_NOT_RUN: Final = "not checked"
_TURN: Final = re.compile(r"^[\u2800-\u28ff] .*\n", re.MULTILINE)
"""A line that mutmut writes ten times a second while it works."""
_MANGLED: Final = re.compile(r"(?P<module>.+)\.x(?:_(?P<function>.+)|ǁ(?P<owner>.+)ǁ(?P<method>.+))__mutmut_\d+")


class MutmutError(Exception):
    """mutmut could not do its work, mostly because a test fails without any mutant."""


def run(folder: Path, selected: str = "", *, everything: bool) -> list[Verdict]:
    """Let mutmut mutate a copy of the project.

    Args:
        folder: Where to copy it.
        selected: What the names of the mutants have to contain, such as ``Reaper`` or ``submit``.
        everything: Whether to mutate all of the engine and the store.

    Raises:
        MutmutError: It did not come to an end.
    """
    copy_to(folder)
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as settings:
        settings.write(_settings(everything=everything))
    names = [f"*{selected}*"] if selected else []
    with temporary_files(folder.parent) as more:
        done = _mutmut(folder, "run", "--max-children", str(AT_ONCE), *names, **more)
    if done.returncode:
        said = _TURN.sub("", done.stdout)
        raise MutmutError(f"mutmut ended with {done.returncode}:\n{said[-6000:]}{done.stderr[-2000:]}")
    listed = re.findall(r"^\s+(\S+): (.+)$", _mutmut(folder, "results", "--all", "true").stdout, re.MULTILINE)
    return [_verdict(folder, name, status) for name, status in listed if status != _NOT_RUN]


def _settings(*, everything: bool) -> str:
    """mutmut's settings, as the part of pyproject.toml where it reads them."""
    settings: dict[str, object] = {
        "source_paths": ["mcp_celery"],
        "only_mutate": ALL_MODULES if everything else MODULES,
        "pytest_add_cli_args_test_selection": ALL_TESTS if everything else TESTS,
        "pytest_add_cli_args": PYTEST,
        "also_copy": ["workers", "config"],
        # A mutant is given up after (seconds of its tests + constant) * multiplier; by default a hanging one holds a
        # place for up to ten minutes.
        "timeout_constant": 5.0,
        "timeout_multiplier": 5.0,
        # Hypothesis refuses a test that runs twice in one process.
        "process_isolation": "forkserver",
        # A log line is for people; a test of its words would be a copy of it.
        "do_not_mutate_patterns": [r"\blogger\."],
    }
    return "\n[tool.mutmut]\n" + "".join(f"{name} = {_toml(value)}\n" for name, value in settings.items())


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return f"'{value}'" if isinstance(value, str) else str(value)


def _mutmut(folder: Path, *argv: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mutmut", *argv]
    environment = {**os.environ, **ENVIRONMENT, **more, "PYTHONPYCACHEPREFIX": str(folder / "pycache")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def _verdict(folder: Path, name: str, status: str) -> Verdict:
    """What mutmut says of a mutant; of a survivor, what it changed."""
    named = _MANGLED.fullmatch(name)
    if named is None:
        raise MutmutError(f"not the name of a mutant: {name}")
    module = named["module"]
    place = f"{module}.{named['function'] or named['owner'] + '.' + named['method']}"
    if status in _KILLED:
        return Verdict(module, Mutant(place), killed=True, how=status)
    diff = _mutmut(folder, "show", name).stdout.splitlines()
    return Verdict(module, Mutant(place, _lines(diff, "-"), _lines(diff, "+")), killed=False, how=status)


def _lines(diff: Sequence[str], sign: str) -> str:
    """The lines of a diff with one sign, without the header."""
    return " ".join(line[1:].strip() for line in diff if line.startswith(sign) and not line.startswith(sign * 3))
