"""The folder that ``mcp-celery demo`` indexes where the current one cannot be: a small project, written anew."""

from __future__ import annotations

from pathlib import Path
from typing import Final

MODULES: Final = 36
PAGES: Final = 8
TABLES: Final = 5
SAMPLE_FILES: Final = 1 + MODULES + PAGES + TABLES


def write_sample(folder: Path) -> None:
    """Write the sample, the same each time.

    Args:
        folder: Where; it is made.
    """
    texts = {"README.md": "# A sample project\n\nWritten by `mcp-celery demo`, and removed when it ends.\n"}
    for number in range(1, MODULES + 1):
        functions = "\n\n".join(f"def step_{step}(x: int) -> int:\n    return x + {step}\n" for step in range(number))
        texts[f"src/module_{number:02}.py"] = f'"""Module {number} of the sample."""\n\n\n{functions}'
    for number in range(1, PAGES + 1):
        texts[f"docs/page_{number}.md"] = f"# Page {number}\n\n" + "A line of text.\n" * (10 * number)
    for number in range(1, TABLES + 1):
        rows = "".join(f"{row},{row * number}\n" for row in range(50 * number))
        texts[f"data/table_{number}.csv"] = f"key,value\n{rows}"
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
