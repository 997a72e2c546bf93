"""The patches of `make mutants`, held against the sources that they break."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_patch_still_applies() -> None:
    patches = sorted((ROOT / "tests" / "mutants" / "patches").glob("*.patch"))
    assert patches
    stale = [
        patch.name
        for patch in patches
        if subprocess.run(
            ["git", "apply", "--check", str(patch)], cwd=ROOT, capture_output=True, check=False
        ).returncode
    ]
    assert stale == [], "write these patches anew"
