"""A server with useful tools of four kinds: much file I/O, one long computation, many network requests, a question.

    mcp-celery dev mcp_celery.demo.server

It reads whatever folders and URLs its callers name, with the rights of the worker: keep it on a development machine.
"""

from __future__ import annotations

import asyncio
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field

from mcp_celery import TaskConfig, TaskServer
from mcp_celery.demo.fetching import FetchLimits, FetchReport, checked_url, fetch_all
from mcp_celery.demo.folder_index import FolderIndex, IndexBuilder, NotIndexableError, list_files, read_file
from mcp_celery.demo.fractal import View, render_png

READ_ONLY = ToolAnnotations(read_only_hint=True, open_world_hint=False)
READ_ONLY_NETWORK = ToolAnnotations(read_only_hint=True, open_world_hint=True)

server = TaskServer(
    "demo", instructions="Indexes folders, finds files, renders fractals and fetches URLs, each as a background task."
)


@server.tool(task=TaskConfig(show_arguments=["path"]), annotations=READ_ONLY)
async def index_folder(
    ctx: Context,
    path: Annotated[str, Field(description="Folder to index; relative to where the worker was started.")] = ".",
    delay_ms: Annotated[int, Field(ge=0, le=1000, description="Pause after each file, to watch the progress.")] = 0,
) -> FolderIndex:
    """Count the lines of a folder's text files by language, find the largest, and digest them all.

    Version control, virtual environments, caches, links and binary files are left out.
    """
    root = Path(path)
    try:
        names = await asyncio.to_thread(list_files, root)
    except NotIndexableError as error:
        raise ToolError(f"{path} {error}") from error
    index = IndexBuilder(root)
    for done, name in enumerate(names, start=1):
        index.add(name, await asyncio.to_thread(read_file, root, name))
        await ctx.report_progress(done, len(names), name)
        if delay_ms:
            await asyncio.sleep(delay_ms / 1000)
    return index.finish()


class Wanted(BaseModel):
    """The question of `find_files`."""

    pattern: str = Field(default="*.md", min_length=1, max_length=100, description="A file's name; * is any text.")


@server.tool(task=TaskConfig(show_arguments=["path"], input_timeout=600), annotations=READ_ONLY)
async def find_files(
    ctx: Context,
    path: Annotated[str, Field(description="Folder to search; relative to where the worker was started.")] = ".",
) -> list[str]:
    """Ask which files are wanted, and name those that a folder has."""
    answer = await ctx.elicit("Which files do you look for?", Wanted)
    if answer.action != "accept":
        raise ToolError("no files were named")
    try:
        names = await asyncio.to_thread(list_files, Path(path))
    except NotIndexableError as error:
        raise ToolError(f"{path} {error}") from error
    return [name for name in names if fnmatch(Path(name).name, answer.data.pattern)]


@server.tool(task=TaskConfig(time_limit=600), annotations=READ_ONLY)
def render_fractal(
    width: Annotated[int, Field(ge=1, le=1600, description="Pixels.")] = 640,
    height: Annotated[int, Field(ge=1, le=1200, description="Pixels.")] = 480,
    center_x: Annotated[float, Field(ge=-3, le=3, description="Real part of the picture's centre.")] = -0.7436,
    center_y: Annotated[float, Field(ge=-3, le=3, description="Imaginary part of the picture's centre.")] = 0.1318,
    zoom: Annotated[float, Field(gt=0, le=1e12, description="1 shows the whole set.")] = 150.0,
    max_iterations: Annotated[int, Field(ge=1, le=2000, description="More show finer detail.")] = 250,
) -> Image:
    """Render a part of the Mandelbrot set as a PNG image: a synchronous tool that keeps a processor busy."""
    view = View(
        width=width, height=height, center_x=center_x, center_y=center_y, zoom=zoom, max_iterations=max_iterations
    )
    return Image(data=render_png(view), format="png")


@server.tool(task=True, annotations=READ_ONLY_NETWORK)
async def fetch_many(
    ctx: Context,
    urls: Annotated[list[str], Field(min_length=1, max_length=100, description="http or https URLs.")],
    concurrency: Annotated[int, Field(ge=1, le=20, description="Requests at a time.")] = 8,
    timeout_seconds: Annotated[float, Field(gt=0, le=60, description="For each URL, its redirects included.")] = 10.0,
    max_bytes: Annotated[int, Field(ge=1, le=50_000_000, description="A longer body is given up.")] = 5_000_000,
) -> FetchReport:
    """Fetch many URLs at once, and report the status, size, time and SHA-256 of each, or why it failed."""
    try:
        checked = [checked_url(url) for url in urls]
    except ValueError as error:
        raise ToolError(str(error)) from error
    limits = FetchLimits(concurrency=concurrency, timeout_seconds=timeout_seconds, max_bytes=max_bytes)
    return await fetch_all(checked, limits, ctx.report_progress)
