"""Mutants that are patches, for what no tool mutates: Lua scripts, tables, properties."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.mutants.copy import AT_ONCE, ENVIRONMENT, PYTEST, ROOT, copy_to
from tests.mutants.forked import Script, TestsError, first_failures
from tests.mutants.verdict import Mutant, Verdict

PATCHES: Final = Path(__file__).with_name("patches")
KILLERS: Final = Path(__file__).with_name("killers.toml")
"""By the names of the patches, the test that failed last time. The next run of a script begins with it."""
TESTS: Final = [
    *(f"tests/unit/test_{name}.py" for name in ("keys", "codec")),
    *(
        f"tests/contract/test_{name}.py"
        for name in ("store", "list", "recovery", "handback", "limits", "engine", "respond", "sweep", "damage")
    ),
    *(f"tests/contract/test_{name}.py" for name in ("finish", "questions", "exposed", "watch", "audit", "not_started")),
    *(f"tests/contract/test_{name}.py" for name in ("webhooks", "abandoned", "idempotency", "places", "turns")),
    *(f"tests/contract/test_{name}.py" for name in ("declared_keys", "direct_reads", "stored_bytes", "repeats")),
    *(f"tests/contract/test_{name}.py" for name in ("transitions", "lost_jobs", "queue_messages", "formats", "sealed")),
]
TABLE_TESTS: Final = {
    "engine": [f"tests/unit/test_{name}.py" for name in ("status", "recovery", "reaper", "engine")],
    "store": [f"tests/contract/test_{name}.py" for name in ("questions", "handback", "recovery")],
}
"""The tests of a changed module, by the package that it is in."""
_NEAREST: Final = {
    **dict.fromkeys(("claim", "claims", "keep", "retire", "start", "transition"), "contract/test_store.py"),
    **dict.fromkeys(("answer", "ask", "heard", "park", "published", "withdraw"), "contract/test_questions.py"),
    **dict.fromkeys(("beat", "hand_back"), "contract/test_handback.py"),
    "sweep": "contract/test_sweep.py",
    "reply": "contract/test_damage.py",
    **dict.fromkeys(("create", "delete", "failed", "present"), "contract/test_limits.py"),
    "finish": "contract/test_finish.py",
    **dict.fromkeys(("bury", "recover"), "contract/test_recovery.py"),
    **dict.fromkeys(("page", "prune"), "contract/test_list.py"),
    "watch": "contract/test_exposed.py",
    **dict.fromkeys(("webhook", "webhooks"), "contract/test_webhooks.py"),
    "attend": "contract/test_abandoned.py",
    "once": "contract/test_idempotency.py",
    **dict.fromkeys(("places", "look"), "contract/test_places.py"),
    **dict.fromkeys(("declared", "grant_places", "held"), "contract/test_declared_keys.py"),
    **dict.fromkeys(("turns", "waiting", "grant_turns"), "contract/test_turns.py"),
}
_UNCHANGED: Final = "without any mutant"


class PatchError(Exception):
    """A patch does not apply any more."""


def run(folder: Path, selected: str = "") -> list[Verdict]:
    """Test each patch.

    Args:
        folder: Where to put what is patched.
        selected: What the names of the patches have to contain.

    Raises:
        PatchError: A patch does not apply any more.
        TestsError: The tests fail without any patch.
    """
    patches = sorted(path for path in PATCHES.glob("*.patch") if selected in path.stem)
    patched = {patch: _patched(patch, folder / "patched" / patch.stem) for patch in patches}
    killers = _killers()
    scripts = [_script(patch, *files, killers) for patch, files in patched.items() if files[0].suffix == ".lua"]
    tables = [patch for patch, files in patched.items() if files[0].suffix == ".py"]
    logs = folder / "logs"
    logs.mkdir()
    failures = first_failures([Script(_UNCHANGED, "", "", ""), *scripts], TESTS, logs) if scripts else {}
    if failed := failures.pop(_UNCHANGED, None):
        raise TestsError(f"a test fails {_UNCHANGED}: {failed}")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        copies = [folder / "tables" / patch.stem for patch in tables]
        tested = pool.map(_tested, copies, *zip(*(patched[patch] for patch in tables), strict=True))
        failures.update(zip((patch.stem for patch in tables), tested, strict=True))
    return [_verdict(name, failed) for name, failed in sorted(failures.items())]


def _patched(patch: Path, folder: Path) -> tuple[Path, Path]:
    """Apply a patch to a copy of the file that it changes.

    Returns:
        The file, and the changed copy.
    """
    (name,) = re.findall(r"^\+\+\+ b/(\S+)$", patch.read_text(encoding="utf-8"), re.MULTILINE)
    copy = folder / name
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / name, copy)
    # Without the ceiling git would take a repository around the copy for the place of the patch's paths.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    command = ["git", "apply", str(patch)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PatchError(f"{patch.name} does not apply any more: {done.stderr.strip()}")
    return ROOT / name, copy


def remember(verdicts: Sequence[Verdict]) -> None:
    """Write down which test killed each patch.

    Args:
        verdicts: Of a run; what is known of other patches stays.
    """
    there = {path.stem for path in PATCHES.glob("*.patch")}
    found = {one.mutant.place: one.how for one in verdicts if one.killed and "::" in one.how}
    known = {name: test for name, test in {**_killers(), **found}.items() if name in there}
    lines = [f"{name} = {json.dumps(test)}\n" for name, test in sorted(known.items())]
    KILLERS.write_text("".join(["# Written by `make mutants ARGS=--killers`.\n", *lines]), encoding="utf-8")


def _killers() -> dict[str, str]:
    return tomllib.loads(KILLERS.read_text(encoding="utf-8"))


def _script(patch: Path, file: Path, copy: Path, killers: Mapping[str, str]) -> Script:
    nearest = _NEAREST.get(patch.stem.partition("-")[0], "contract/test_store.py")
    first = killers.get(patch.stem, f"tests/{nearest}")
    return Script(patch.stem, file.read_text(encoding="utf-8"), copy.read_text(encoding="utf-8"), first)


def _tested(copy: Path, file: Path, changed: Path) -> str | None:
    """Run the tests with a changed module, in a copy of the project."""
    copy_to(copy)
    name = file.relative_to(ROOT)
    shutil.copy(changed, copy / name)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", *PYTEST, *TABLE_TESTS[name.parts[1]]]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == pytest.ExitCode.OK:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if failed is None:
        raise TestsError(f"the tests of {copy.name} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return failed[1]


def _verdict(name: str, failed: str | None) -> Verdict:
    return Verdict("patches", Mutant(name), killed=failed is not None, how=failed or "survived")
