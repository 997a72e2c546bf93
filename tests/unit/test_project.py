"""The project's own promises: what it needs is pinned, and the pins name no place."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Pin:
    """One entry of constraints.txt: a name may have several, each under its own marker."""

    name: str
    version: Version
    hashes: tuple[str, ...]


def read_pins(text: str) -> list[Pin]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    pins: list[Pin] = []
    for entry in "\n".join(lines).replace("\\\n", " ").splitlines():
        requirement, *hashes = re.split(r"\s+--hash=", entry)
        parsed = Requirement(requirement)
        (exact,) = parsed.specifier
        assert exact.operator == "==", f"not pinned: {requirement}"
        pins.append(Pin(canonicalize_name(parsed.name), Version(exact.version), tuple(hashes)))
    return pins


def stated_requirements() -> list[str]:
    project = PROJECT["project"]
    extras = [text for group in project["optional-dependencies"].values() for text in group]
    groups = [text for group in PROJECT["dependency-groups"].values() for text in group if isinstance(text, str)]
    return [*project["dependencies"], *extras, *groups, *PROJECT["build-system"]["requires"]]


PINS = read_pins(CONSTRAINTS)


def test_each_requirement_has_a_pin_that_satisfies_it() -> None:
    for stated in stated_requirements():
        requirement = Requirement(stated)
        versions = [pin.version for pin in PINS if pin.name == canonicalize_name(requirement.name)]
        assert versions, f"{stated} has no pin: run `make constraints`"
        unfit = [str(version) for version in versions if version not in requirement.specifier]
        assert not unfit, f"{stated} is pinned to {unfit}: run `make constraints`"


def test_each_pin_has_hashes() -> None:
    assert PINS
    assert [pin.name for pin in PINS if not pin.hashes] == []
    odd = [digest for pin in PINS for digest in pin.hashes if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest)]
    assert odd == []


PLACES = {
    "an option (an index address, a folder of files, an editable)": r"^\s*-(?!-hash=sha256:)",
    "an address": r"\w+://",
    "a direct reference": r"^[^#\s]\S*\s*@",
    "an absolute path": r"(^|[\s\"'=])/\w",
    "a home folder": r"~/",
}


def test_the_constraints_name_no_place() -> None:
    for what, pattern in PLACES.items():
        found = [line for line in CONSTRAINTS.splitlines() if re.search(pattern, line)]
        assert found == [], f"constraints.txt names {what}"


def test_the_wheel_holds_the_package_alone_and_what_init_writes() -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = ("Procfile", "config", "workers/__init__.py", "workers/asgi.py")
    assert wheel == {
        "packages": ["mcp_celery"],
        "force-include": {name: f"mcp_celery/starter/{name}" for name in copied},
    }
    assert (ROOT / "mcp_celery" / "py.typed").is_file()
    files = [path for path in (ROOT / "mcp_celery").rglob("*") if path.is_file()]
    assert {path.suffix for path in files if "starter" not in path.parts} - {".pyc"} <= {".py", ".lua", ".typed", ""}
