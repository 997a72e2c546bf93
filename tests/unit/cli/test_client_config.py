"""The entries of desktop clients, and how they get into the clients' files."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mcp_celery.cli.clients.known import KNOWN
from mcp_celery.cli.clients.merging import Change
from mcp_celery.cli.errors import RunError
from mcp_celery.cli.main import cli
from tests.support.programs import ROOT

Run = Callable[..., Result]
URL = "http://127.0.0.1:8000/mcp"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``client-config`` in a folder and with a home of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["client-config", *arguments])

    return invoke


def entry(done: Result, section: str = "mcpServers") -> Any:
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)[section]["x"]


@pytest.mark.parametrize(
    ("client", "section", "wanted"),
    [
        ("claude-desktop", "mcpServers", {"command": "npx", "args": ["-y", "mcp-remote", URL]}),
        ("claude-code", "mcpServers", {"type": "http", "url": URL}),
        ("cursor", "mcpServers", {"url": URL}),
        ("vscode", "servers", {"type": "http", "url": URL}),
    ],
)
def test_the_entry_for_a_running_server_has_its_url(run: Run, client: str, section: str, wanted: Any) -> None:
    assert entry(run("--client", client, "--http", "http://127.0.0.1:8000", "--name", "x"), section) == wanted


def test_the_bridge_gets_the_option_for_a_connection_without_tls(run: Run) -> None:
    done = run("--client", "claude-desktop", "--http", "http://reports.example/mcp", "--name", "x")
    assert entry(done)["args"][-1] == "--allow-http"


@pytest.mark.parametrize(
    ("client", "file"),
    [
        ("claude-code", ".mcp.json"),
        ("cursor", ".cursor/mcp.json"),
        ("vscode", ".vscode/mcp.json"),
        (
            "claude-desktop",
            "home/Library/Application Support/Claude/claude_desktop_config.json"
            if sys.platform == "darwin"
            else "home/.config/Claude/claude_desktop_config.json",
        ),
    ],
)
def test_each_client_has_its_file(run: Run, tmp_path: Path, client: str, file: str) -> None:
    done = run("--client", client, "--http", URL, "--name", "x", "--write", "--yes")
    assert done.exit_code == 0, done.output
    assert KNOWN[client].afterwards in done.stdout
    assert json.loads((tmp_path / file).read_text())[KNOWN[client].section]["x"]
    again = run("--client", client, "--http", URL, "--name", "x", "--write")
    assert "has this entry already" in again.stdout
    assert not list((tmp_path / file).parent.glob("*.bak"))


def test_the_rest_of_a_file_and_its_rights_stay_and_a_copy_is_kept(run: Run, tmp_path: Path) -> None:
    text = '\ufeff{\n  // mine\n  "mcpServers": {"other": {"url": "http://o.example"}}\n}\n'
    shared = tmp_path / "dotfiles" / "mcp.json"
    shared.parent.mkdir()
    shared.write_text(text)
    shared.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(shared)
    write = ("--client", "cursor", "--name", "x", "--write", "--yes", "--file", "link.json", "--http")
    assert run(*write, "http://one.example").exit_code == 0
    first = shared.read_text()
    assert run(*write, "http://two.example").exit_code == 0
    assert link.is_symlink()
    assert shared.read_text().startswith('\ufeff{\n  // mine\n  "mcpServers": {"other": {"url": "http://o.example"},\n')
    copies = [shared.with_name("mcp.json.bak"), shared.with_name("mcp.json.bak.1")]
    assert [copy.read_text() for copy in copies] == [text, first]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (shared, *copies)} == {0o640}
    assert sorted(shared.parent.iterdir()) == sorted([shared, *copies])


def test_a_file_that_is_no_json_is_left_as_it_is(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    for content, place in ((b'{\n  "mcpServers": {,}\n}', "2: not JSON"), (b"{}\n\xff", "2: not UTF-8")):
        file.write_bytes(content)
        done = run("--client", "cursor", "--http", URL, "--name", "x", "--write", "--yes", "--file", "mcp.json")
        assert done.exit_code == 2
        assert f"{file}:{place}" in done.stderr
        assert file.read_bytes() == content
        assert list(tmp_path.iterdir()) == [file]


def test_without_a_terminal_to_ask_at_nothing_is_written(run: Run, tmp_path: Path) -> None:
    done = run("--client", "cursor", "--http", URL, "--name", "x", "--write")
    assert done.exit_code == 2
    assert "add --yes" in done.stderr
    assert '+      "url": "http://127.0.0.1:8000/mcp"' in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_changed_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    change = Change.prepare(file, "servers", "x", {})
    file.write_text("{}")
    with pytest.raises(RunError, match="changed by another program"):
        change.write()
    assert file.read_text() == "{}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "module:attribute"),
        (("--http", URL), "both --http and --name"),
        (("--http", "localhost:8000", "--name", "x"), "'localhost:8000' is not an http:// or https:// URL"),
        (("--http", URL, "--name", "x", "--write"), "--write needs --client"),
        (("--env", "x", "--http", URL, "--name", "x"), "--env 'x': expected name=value"),
        (("missing:server",), "no module 'missing'"),
        (("missing.py",), "there is no file 'missing.py'"),
    ],
)
def test_a_server_that_cannot_be_described_is_an_error_of_one_line(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr.splitlines()[-1]
    assert done.stdout == ""


def test_the_page_names_each_client_with_its_file_and_section() -> None:
    lines = (ROOT / "docs" / "desktop-clients.md").read_text().splitlines()
    for client in KNOWN.values():
        entry, _tasks = (line for line in lines if line.startswith(f"| {client.title} |"))
        assert f"`{client.section}`" in entry
        assert client.file().name in entry
