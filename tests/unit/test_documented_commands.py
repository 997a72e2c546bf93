"""The command lines and log lines in the documentation, held against the real commands and the code."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import click
import pytest
from celery.bin.celery import celery
from celery.worker.control import Panel

from mcp_celery.cli.main import cli
from tests.support.sources import modules_of_the_package

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
COMMANDS: Final = {"celery": celery, "mcp-celery": cli}
SPAN: Final = re.compile(r"`([^`\n]+)`")
BLOCK: Final = re.compile(r"^```(\w*)(?: [^\n]*)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS: Final = ("", "sh", "bash", "console", "shell")
QUOTED_LOG: Final = re.compile(r'\blog says "([^"]+)"')


def command_lines(text: str) -> Generator[list[str]]:
    """The words of each documented call of one of our commands, without the variables before it."""
    spans = SPAN.findall(BLOCK.sub("", text))
    blocks = [block for language, block in BLOCK.findall(text) if language in SHELLS]
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    for line in [*spans, *lines]:
        try:
            words = shlex.split(line.replace("…", "X"), comments=True)
        except ValueError:
            continue
        words = [word.strip("[]") for word in words]
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words and words[0] in COMMANDS and len(words) > 1:
            end = next((at for at, word in enumerate(words) if word in ("|", "&", "&&", ">", ";")), len(words))
            yield words[:end]


def options_of(command: click.Command) -> dict[str, click.Option]:
    return {
        name: one
        for one in command.params
        if isinstance(one, click.Option)
        for name in (*one.opts, *one.secondary_opts)
    }


def wrong_in(words: list[str]) -> str | None:
    """What of a command line the real command does not have, None for nothing."""
    command: click.Command = COMMANDS[words[0]]
    rest = words[1:]
    path = words[0]
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if word.startswith("-") and word != "-":
            option = options_of(command).get(name) or options_of(command).get(word[:2])
            if name in ("--help", "--version") or path == "celery flower":
                continue  # click's own; Flower's options are Tornado's
            if option is None:
                return f"{path} has no option {name}"
            if not option.is_flag and not option.count and not equals and name in options_of(command):
                rest = rest[option.nargs :]
        elif isinstance(command, click.Group):
            found = command.get_command(click.Context(command), word.split("|")[0])
            if found is None:
                return f"{path} has no command {word}"
            command, path = found, f"{path} {word}"
        elif path in ("celery control", "celery inspect"):
            known = Panel.meta.get(word)
            if known is None or known.type != path.split()[1]:
                return f"{path} has no command {word}"
            path = f"{path} {word}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_are_there_with_their_options(page: Path) -> None:
    assert [(words, wrong) for words in command_lines(page.read_text()) if (wrong := wrong_in(words))] == []


def test_flower_listens_on_this_machine_alone_wherever_it_is_started() -> None:
    """It would listen on every address. Our configuration says the same as the option."""
    pages = [*PAGES, ROOT / "Procfile", ROOT / "docs" / "operations.md"]
    lines = [words for page in pages for words in command_lines(page.read_text()) if "flower" in words]
    lines += [shlex.split(line) for line in (ROOT / "Procfile").read_text().splitlines() if line.startswith("flower:")]
    assert lines
    assert [line for line in lines if not {"--address=127.0.0.1", "--conf=config/flowerconfig.py"} & {*line}] == []
    assert 'address = "127.0.0.1"' in (ROOT / "config" / "flowerconfig.py").read_text()


def test_command_lines_are_found_and_wrong_ones_are_noticed() -> None:
    inline = "`celery -A x control revoke ID [--terminate]` or `A=b mcp-celery serve m:s --prot 1`"
    text = f"{inline}\n```sh\ncelery -A x statu\n```"
    found = [wrong_in(words) for words in command_lines(text)]
    assert found == [
        "celery control revoke has no option --terminate",
        "mcp-celery serve has no option --prot",
        "celery has no command statu",
    ]


def texts_of_the_package() -> str:
    nodes: list[Any] = [node for tree in modules_of_the_package().values() for node in ast.walk(tree)]
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


@pytest.mark.xdist_group("sources")
def test_quoted_log_lines_are_those_of_the_code() -> None:
    texts = texts_of_the_package()
    quoted = [
        (page.name, part) for page in PAGES for line in QUOTED_LOG.findall(page.read_text()) for part in line.split("…")
    ]
    assert quoted
    assert [one for one in quoted if one[1].strip() not in texts] == []
