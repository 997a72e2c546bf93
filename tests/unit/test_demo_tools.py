"""The tools of the demo server, called as plain functions."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import struct
import threading
import zlib
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast

import pytest
from mcp.server.elicitation import AcceptedElicitation, DeclinedElicitation
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError

from mcp_celery.demo import server as demo
from mcp_celery.demo.fetching import FetchReport
from mcp_celery.demo.folder_index import FolderIndex, NotIndexableError, list_files
from mcp_celery.demo.fractal import PNG_SIGNATURE, View, colour_of, escape_count, render_png
from mcp_celery.server.task_server import tasks_of
from tests.support.http_server import LocalServer


class Progress:
    """Stands in for the context of a call, as far as the tools use it."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, float | None, str | None]] = []
        self.answer: Any = DeclinedElicitation()

    async def elicit(self, message: str, schema: type[demo.Wanted]) -> Any:
        assert schema is demo.Wanted
        return self.answer

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        self.reports.append((progress, total, message))

    @property
    def ctx(self) -> Context[Any, Any]:
        return cast("Context[Any, Any]", self)


def index(folder: Path, progress: Progress | None = None) -> FolderIndex:
    return asyncio.run(demo.index_folder((progress or Progress()).ctx, str(folder)))


def find(folder: Path, pattern: str | None) -> list[str]:
    context = Progress()
    if pattern is not None:
        context.answer = AcceptedElicitation(data=demo.Wanted(pattern=pattern))
    return asyncio.run(demo.find_files(context.ctx, str(folder)))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    texts = {
        "a.py": "one\ntwo\n",
        "sub/b.py": "no end",
        "sub/empty.py": "",
        "README.md": "# Title\n",
        "Makefile": "all:\n",
        "odd.xyz": "1\n2\n3\n",
        ".git/config": "left out\n",
        "pkg/__pycache__/x.py": "left out\n",
        "env/pyvenv.cfg": "left out\n",
        "env/lib/y.py": "left out\n",
        "target/CACHEDIR.TAG": "left out\n",
    }
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (root / "picture.bin").write_bytes(b"\x89\0\0" * 100)
    (root / "link.py").symlink_to(root / "a.py")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.py")
    return root


def test_files_are_found_by_the_pattern_that_is_asked_for(tree: Path) -> None:
    assert find(tree, "*.py") == ["a.py", "sub/b.py", "sub/empty.py"]
    assert find(tree, "nothing") == []
    with pytest.raises(ToolError, match="no files were named"):
        find(tree, None)
    with pytest.raises(ToolError, match="missing"):
        find(tree / "missing", "*")


def test_the_index_counts_text_files_by_language(tree: Path) -> None:
    found = index(tree)
    assert (found.files, found.lines, found.skipped) == (6, 8, 1)
    assert found.bytes == len("one\ntwo\n" + "no end" + "# Title\n" + "all:\n" + "1\n2\n3\n")
    counted = {one.language: (one.files, one.lines, one.bytes) for one in found.languages}
    assert counted == {"Python": (3, 3, 14), "Markdown": (1, 1, 8), "Make": (1, 1, 5), "Other": (1, 3, 6)}
    assert [one.path for one in found.largest[:2]] == ["README.md", "a.py"]


def test_equal_trees_have_equal_digests_wherever_they_are(tree: Path, tmp_path: Path) -> None:
    digest = index(tree).digest
    moved = tree.rename(tmp_path / "elsewhere")
    assert index(moved).digest == digest
    (moved / ".git/config").write_text("changed", encoding="utf-8")
    assert index(moved).digest == digest
    (moved / "a.py").write_text("one\ntwO\n", encoding="utf-8")
    changed = index(moved).digest
    assert changed != digest
    (moved / "a.py").rename(moved / "c.py")
    assert index(moved).digest not in (digest, changed)


def test_each_file_is_reported_as_it_is_done(tree: Path) -> None:
    progress = Progress()
    index(tree, progress)
    names = [message for _, _, message in progress.reports]
    assert names == sorted(name for name in names if name)
    assert [(done, total) for done, total, _ in progress.reports] == [(number, 7) for number in range(1, 8)]


def test_a_name_that_is_no_text_can_be_indexed(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.py")).write_text("x\n", encoding="utf-8")
    found = index(tmp_path)
    assert found.largest[0].path == "caf\N{REPLACEMENT CHARACTER}.py"
    assert found.model_dump_json()


def test_a_path_that_is_no_folder_is_named(tree: Path) -> None:
    with pytest.raises(ToolError, match=r"/missing does not exist$"):
        index(tree / "missing")
    with pytest.raises(ToolError, match=r"/a\.py is not a folder$"):
        index(tree / "a.py")


def test_a_folder_of_too_many_files_is_refused(tree: Path) -> None:
    with pytest.raises(NotIndexableError, match="more than 3 files"):
        list_files(tree, limit=3)


def decode_png(data: bytes) -> tuple[int, int, list[bytes]]:
    """Take a PNG apart: width, height, and the pixels of each row, with every checksum verified."""
    assert data.startswith(PNG_SIGNATURE)
    chunks: dict[bytes, bytes] = {}
    place = len(PNG_SIGNATURE)
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, place + 8 + length)
        assert checksum == zlib.crc32(kind + content)
        chunks[kind] = content
        place += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *form = struct.unpack(">II5B", chunks[b"IHDR"])
    assert form == [8, 2, 0, 0, 0], "8 bits of red, green and blue, not interlaced"
    raw = zlib.decompress(chunks[b"IDAT"])
    size = 1 + 3 * width
    rows = [raw[start : start + size] for start in range(0, len(raw), size)]
    assert len(rows) == height
    assert {row[0] for row in rows} == {0}
    return width, height, [row[1:] for row in rows]


def test_the_fractal_is_a_picture_of_the_size_asked_for() -> None:
    image = demo.render_fractal(width=31, height=17, center_x=-0.5, center_y=0.0, zoom=1.0, max_iterations=50)
    content = image.to_image_content()
    assert content.mime_type == "image/png"
    assert image.data is not None
    width, height, rows = decode_png(image.data)
    assert (width, height) == (31, 17)
    middle = rows[8]
    assert middle[3 * 15 : 3 * 16] == b"\0\0\0", "the middle of the set is black"
    assert rows[0][:3] != b"\0\0\0", "the corner is outside"
    assert rows == rows[::-1], "the set mirrors itself"


def test_points_inside_never_escape_and_points_outside_do() -> None:
    assert escape_count(0.0, 0.0, 1000) is None
    assert escape_count(-1.0, 0.0, 1000) is None
    assert escape_count(-0.1592, 1.0317, 1000) is None, "inside, and known by iterating only"
    assert escape_count(2.0, 2.0, 1000) is not None
    assert len(colour_of(12.5)) == 3


def test_a_single_pixel_can_be_drawn() -> None:
    view = View(width=1, height=1, center_x=0.0, center_y=0.0, zoom=1.0, max_iterations=1)
    assert decode_png(render_png(view)) == (1, 1, [b"\0\0\0"])


class Site(BaseHTTPRequestHandler):
    """What is fetched in these tests."""

    release = threading.Event()

    def do_GET(self) -> None:
        match self.path:
            case "/hello":
                self.answer(200, b"hello")
            case "/packed":
                self.answer(200, gzip.compress(b"x" * 100_000), ("Content-Encoding", "gzip"))
            case "/moved":
                self.answer(302, b"", ("Location", "/hello"))
            case "/away":
                self.answer(302, b"", ("Location", "file:///etc/hosts"))
            case "/slow":
                self.release.wait(30)
                self.answer(200, b"late")
            case _:
                self.answer(404, b"nothing here")

    def answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for header in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
        """Say nothing."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Site.release.clear()
    with LocalServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Site.release.set()
        server.shutdown()
        thread.join()


def fetch(urls: list[str], progress: Progress | None = None, **limits: Any) -> FetchReport:
    return asyncio.run(demo.fetch_many((progress or Progress()).ctx, urls, **limits))


def test_urls_are_fetched_and_reported_in_order(site: str) -> None:
    progress = Progress()
    urls = [f"{site}/hello", f"{site}/nothing", f"{site}/moved", f"{site}/packed"]
    report = fetch(urls, progress, concurrency=2)
    assert [one.url for one in report.fetched] == urls
    assert [one.status for one in report.fetched] == [200, 404, 200, 200]
    assert [one.bytes for one in report.fetched] == [5, 12, 5, 100_000]
    assert report.fetched[0].sha256 == hashlib.sha256(b"hello").hexdigest()
    assert report.failed == 0
    assert [(done, total) for done, total, _ in progress.reports] == [(number, 4) for number in range(1, 5)]
    assert {message for _, _, message in progress.reports} == set(urls)


def test_one_failure_is_reported_and_stops_no_other_download(site: str) -> None:
    urls = [f"{site}/slow", f"{site}/packed", f"{site}/away", "http://127.0.0.1:1/", f"{site}/hello"]
    report = fetch(urls, timeout_seconds=3, max_bytes=1000)  # enough for the others beside busy processes
    slow, packed, away, closed, hello = report.fetched
    assert slow.error == "not done within 3 s"
    assert packed.error == "the body is longer than 1000 bytes"
    assert away.error
    assert "file" in away.error
    assert closed.error
    assert closed.status is None
    assert (hello.error, hello.bytes) == (None, 5)
    assert report.failed == 4


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/passwd", "//host/x", "no url", "http://", "http://[::1"])
def test_other_than_http_and_https_is_refused_by_name(url: str) -> None:
    with pytest.raises(ToolError) as refused:
        fetch([url])
    assert repr(url) in str(refused.value)


def test_every_tool_can_run_as_a_task_on_the_servers_own_queue() -> None:
    tasks = tasks_of(demo.server)
    assert tasks.namespace == "demo"
    assert tasks.queue_names == ("mcp.demo",)
    tools = asyncio.run(demo.server.list_tools())
    assert {tool.name for tool in tools} == {"index_folder", "find_files", "render_fractal", "fetch_many"}
    assert all(tool.annotations and tool.annotations.read_only_hint for tool in tools)
