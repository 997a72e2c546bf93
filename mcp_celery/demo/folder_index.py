"""The body of the demo tool ``index_folder``: plain blocking code without MCP."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, Field

MAX_FILES: Final = 20_000
MAX_FILE_BYTES: Final = 50_000_000
LARGEST_LISTED: Final = 10
CHUNK_BYTES: Final = 1 << 20
BINARY_CHECK_BYTES: Final = 8192
SKIPPED_FOLDERS: Final = frozenset({
    ".cache", ".eggs", ".git", ".gradle", ".hg", ".hypothesis", ".idea", ".import_linter_cache", ".mypy_cache", ".nox",
    ".pytest_cache", ".ruff_cache", ".svn", ".terraform", ".tox", ".venv", "__pycache__", "node_modules", "venv",
})  # fmt: skip
FOLDER_MARKS: Final = ("pyvenv.cfg", "CACHEDIR.TAG")
"""Files that mark a virtual environment or a cache (https://bford.info/cachedir/), whatever the folder is called."""
LANGUAGES: Final = {
    ".bash": "Shell", ".c": "C", ".cc": "C++", ".cfg": "INI", ".conf": "Configuration", ".cpp": "C++", ".cs": "C#",
    ".css": "CSS", ".csv": "CSV", ".go": "Go", ".h": "C", ".hpp": "C++", ".htm": "HTML", ".html": "HTML", ".ini": "INI",
    ".ipynb": "Jupyter", ".java": "Java", ".js": "JavaScript", ".json": "JSON", ".jsx": "JavaScript", ".kt": "Kotlin",
    ".lua": "Lua", ".md": "Markdown", ".php": "PHP", ".pl": "Perl", ".proto": "Protobuf", ".ps1": "PowerShell",
    ".py": "Python", ".pyi": "Python", ".pyx": "Cython", ".r": "R", ".rb": "Ruby", ".rs": "Rust",
    ".rst": "reStructuredText", ".scala": "Scala", ".sh": "Shell", ".sql": "SQL", ".svg": "SVG", ".swift": "Swift",
    ".toml": "TOML", ".ts": "TypeScript", ".tsx": "TypeScript", ".txt": "Text", ".xml": "XML", ".yaml": "YAML",
    ".yml": "YAML", ".zsh": "Shell",
}  # fmt: skip
LANGUAGES_BY_NAME: Final = {"dockerfile": "Docker", "makefile": "Make", "procfile": "Procfile", "license": "Text"}


class LanguageCount(BaseModel):
    """The text files of one language."""

    language: str
    files: int
    lines: int
    bytes: int


class FileEntry(BaseModel):
    """One text file."""

    path: str
    lines: int
    bytes: int


class FolderIndex(BaseModel):
    """A folder's text files."""

    root: str
    files: int
    lines: int
    bytes: int
    skipped: int = Field(description="Files left out: binary, unreadable, or too large.")
    languages: list[LanguageCount] = Field(description="Most lines first.")
    largest: list[FileEntry] = Field(description="Largest first.")
    digest: str = Field(description="SHA-256 over the names and contents: equal for equal trees, wherever they are.")


class NotIndexableError(Exception):
    """There is no such folder, or it holds more than an index takes in."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The index entry of a text file.

    Args:
        lines: Its lines; a last one without an end counts.
        size: Bytes.
        digest: SHA-256 of its content.
    """

    lines: int
    size: int
    digest: bytes


def list_files(root: Path, *, limit: int = MAX_FILES) -> list[str]:
    """List the regular files below a folder; links are not followed, so the list ends, and stays in the folder.

    Args:
        root: The folder.
        limit: How many files it may hold.

    Returns:
        Names relative to the folder, with ``/``, sorted, so that equal trees give equal lists.

    Raises:
        NotIndexableError: It holds more, or is no folder.
    """
    if not root.is_dir():
        raise NotIndexableError("is not a folder" if root.exists() else "does not exist")
    found: list[str] = []
    for folder, subfolders, names in os.walk(root):
        if folder != str(root) and not set(FOLDER_MARKS).isdisjoint(names):
            subfolders.clear()
            continue
        subfolders[:] = [name for name in subfolders if name not in SKIPPED_FOLDERS]
        paths = (Path(folder, name) for name in names)
        found += [path.relative_to(root).as_posix() for path in paths if _is_regular(path)]
        if len(found) > limit:
            raise NotIndexableError(f"holds more than {limit} files; name a smaller folder")
    return sorted(found)


def _is_regular(path: Path) -> bool:
    # Neither a link nor a pipe, which would be waited for.
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def read_file(root: Path, name: str) -> FileFacts | None:
    """Read a file once, in pieces.

    Args:
        root: The folder.
        name: The file's name in it.

    Returns:
        Its facts; None where it is binary, too large, or cannot be read.
    """
    content, lines, size, last = hashlib.sha256(), 0, 0, b""
    try:
        with (root / name).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                if not size and b"\0" in chunk[:BINARY_CHECK_BYTES]:
                    return None
                content.update(chunk)
                lines += chunk.count(b"\n")
                size += len(chunk)
                last = chunk[-1:]
                if size > MAX_FILE_BYTES:
                    return None
    except OSError:
        return None
    return FileFacts(lines + (last not in (b"", b"\n")), size, content.digest())


def language_of(name: str) -> str:
    """The language of a file, by its name.

    >>> language_of("src/app.PY"), language_of("Makefile"), language_of("data.xyz")
    ('Python', 'Make', 'Other')
    """
    path = Path(name.lower())
    return LANGUAGES.get(path.suffix) or LANGUAGES_BY_NAME.get(path.name, "Other")


class IndexBuilder:
    """Gathers an index file by file, in the order of `list_files`.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._entries: list[FileEntry] = []
        self._skipped = 0
        self._files: Counter[str] = Counter()
        self._lines: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._digest = hashlib.sha256()

    def add(self, name: str, facts: FileFacts | None) -> None:
        """Take a file in.

        Args:
            name: Its name, relative to the folder.
            facts: What is known of it; None where it is left out.
        """
        if facts is None:
            self._skipped += 1
            return
        raw = os.fsencode(name)
        # With its length before it, a name cannot be taken for the end of another.
        self._digest.update(len(raw).to_bytes(4, "big") + raw + facts.digest)
        # A name need not be text, and the index has to be.
        shown = raw.decode(errors="replace")
        self._entries.append(FileEntry(path=shown, lines=facts.lines, bytes=facts.size))
        language = language_of(name)
        self._files[language] += 1
        self._lines[language] += facts.lines
        self._bytes[language] += facts.size

    def finish(self) -> FolderIndex:
        """Return the index of what was taken in."""
        languages = sorted(self._files, key=lambda language: (-self._lines[language], language))
        return FolderIndex(
            root=os.fsencode(self._root.resolve()).decode(errors="replace"),
            files=len(self._entries),
            lines=self._lines.total(),
            bytes=self._bytes.total(),
            skipped=self._skipped,
            languages=[
                LanguageCount(language=one, files=self._files[one], lines=self._lines[one], bytes=self._bytes[one])
                for one in languages
            ],
            largest=sorted(self._entries, key=lambda entry: (-entry.bytes, entry.path))[:LARGEST_LISTED],
            digest=self._digest.hexdigest(),
        )
