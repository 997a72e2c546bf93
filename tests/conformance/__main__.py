"""Runs the official conformance suite's ``tasks-*`` scenarios against our fixture server, with a real worker and store.

``make conformance`` calls it. Node comes with the development dependencies; the suite is installed from npm into
``build/conformance``.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from mcp_celery.embedded import EmbeddedStore
from tests.support.deployment import ROOT, deployed
from tests.support.node import NpmError, install, node

SUITE: Final = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
REVISION: Final = "2026-07-28"
PLACE: Final = ROOT / "build" / "conformance"
EXPECTED: Final = Path(__file__).with_name("expected_failures.toml")
_SCENARIO_SECONDS: Final = 180


@dataclass(frozen=True)
class Outcome:
    """How a scenario ended."""

    scenario: str
    passed: int
    failed: int
    failures: tuple[str, ...]

    @property
    def succeeded(self) -> bool:
        return self.failed == 0


def suite() -> Path:
    """Install the suite, once.

    Returns:
        Its program.
    """
    program = PLACE / "node_modules" / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
    wanted = SUITE.rpartition("@")[2]
    manifest = program.parents[1] / "package.json"
    if not manifest.exists() or json.loads(manifest.read_text())["version"] != wanted:
        try:
            install(SUITE, folder=PLACE, timeout_seconds=_SCENARIO_SECONDS)
        except NpmError as error:
            raise SystemExit(f"cannot install {SUITE} from npm:\n{error}") from error
    return program


def scenarios(program: Path) -> list[str]:
    """The suite's scenarios about tasks."""
    listed = node(str(program), "list", cwd=PLACE, timeout_seconds=_SCENARIO_SECONDS).stdout
    return sorted(set(re.findall(r"- (tasks-[a-z-]+)", listed)))


def run(program: Path, scenario: str, url: str) -> Outcome:
    """Run a scenario against a server."""
    results = PLACE / "results" / scenario
    argv = [str(program), "server", "--url", url, "--scenario", scenario, "--spec-version", REVISION, "--force"]
    done = node(*argv, "--output-dir", str(results), cwd=PLACE, timeout_seconds=_SCENARIO_SECONDS)
    found = sorted(results.rglob("checks.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        return Outcome(scenario, 0, 1, (done.stdout[-2000:] + done.stderr[-2000:],))
    checks = json.loads(found[-1].read_text())
    failures = tuple(
        f"{one['id']}: {one.get('errorMessage') or one['description']}" for one in checks if one["status"] == "FAILURE"
    )
    return Outcome(scenario, sum(one["status"] == "SUCCESS" for one in checks), len(failures), failures)


def main() -> int:
    """Run everything, show a table, and compare with what may fail.

    Returns:
        The exit status.
    """
    expected = tomllib.loads(EXPECTED.read_text())["scenarios"]
    program = suite()
    console = Console(width=110)
    with (
        tempfile.TemporaryDirectory(prefix="mcp-conf-") as folder,
        EmbeddedStore.open(Path(folder) / "store") as store,
        deployed(store.url, "conformance", quiet=True) as deployment,
        deployment.worker("asyncio", concurrency=8),
    ):
        url = deployment.serve()
        outcomes = [run(program, scenario, url) for scenario in scenarios(program)]
    table = Table("scenario", "checks passed", "failed", "", title=f"{SUITE}, revision {REVISION}")
    wrong = 0
    for outcome in outcomes:
        may_fail = outcome.scenario in expected
        wrong += outcome.succeeded == may_fail
        verdict = {
            (True, False): "passes" if outcome.passed else "passes (the suite checks nothing here yet)",
            (False, True): f"expected: {expected.get(outcome.scenario)}",
            (False, False): "FAILS",
            (True, True): "PASSES, yet is listed in expected_failures.toml",
        }[outcome.succeeded, may_fail]
        table.add_row(outcome.scenario, str(outcome.passed), str(outcome.failed), verdict)
    console.print(table)
    for outcome in outcomes:
        for failure in outcome.failures:
            console.print(f"{outcome.scenario}: {failure}", highlight=False)
    console.print(f"{len(outcomes) - wrong} passed, {wrong} failed")
    return 1 if wrong or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
