"""The body of the demo tool ``fetch_many``: many requests at once, each bounded in time and size."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import httpx2
from pydantic import BaseModel, Field

SCHEMES: Final = ("http", "https")
MAX_REDIRECTS: Final = 5


class Fetched(BaseModel):
    """The outcome for one URL: either a status with a body, or an error."""

    url: str
    status: int | None = Field(default=None, description="HTTP status.")
    bytes: int | None = Field(default=None, description="Length of the decoded body.")
    sha256: str | None = Field(default=None, description="Of the decoded body.")
    ms: int = Field(description="Milliseconds it took.")
    error: str | None = Field(default=None, description="Why there is no body.")


class FetchReport(BaseModel):
    """The outcomes for all URLs, in the order they were named."""

    fetched: list[Fetched]
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """The limits of a fetch.

    Args:
        concurrency: Requests at a time.
        timeout_seconds: For each URL, redirects and body included.
        max_bytes: Of each decoded body.
    """

    concurrency: int
    timeout_seconds: float
    max_bytes: int


def checked_url(text: str) -> httpx2.URL:
    """Read a URL.

    Args:
        text: As it came.

    Raises:
        ValueError: It is not a URL, or neither http nor https; the message shows it.
    """
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from error
    if url.scheme not in SCHEMES or not url.host:
        raise ValueError(f"{text!r} is not an http or https URL")
    return url


async def fetch_all(
    urls: list[httpx2.URL], limits: FetchLimits, report: Callable[[float, float, str], Awaitable[None]]
) -> FetchReport:
    """Fetch URLs.

    Args:
        urls: Which.
        limits: What each may take.
        report: Called as each is done, with how many are, how many there are, and the one.
    """
    slots = asyncio.Semaphore(limits.concurrency)
    done = 0

    async def fetch_one(client: httpx2.AsyncClient, url: httpx2.URL) -> Fetched:
        nonlocal done
        async with slots:
            fetched = await _fetch(client, url, limits)
        done += 1
        await report(done, len(urls), str(url))
        return fetched

    async with (
        httpx2.AsyncClient(follow_redirects=True, max_redirects=MAX_REDIRECTS) as client,
        asyncio.TaskGroup() as group,
    ):
        tasks = [group.create_task(fetch_one(client, url)) for url in urls]
    fetched = [task.result() for task in tasks]
    return FetchReport(fetched=fetched, failed=sum(one.error is not None for one in fetched))


async def _fetch(client: httpx2.AsyncClient, url: httpx2.URL, limits: FetchLimits) -> Fetched:
    started = time.monotonic()
    status: int | None = None
    error: str | None = None
    size, body = 0, hashlib.sha256()
    try:
        # httpx limits each single wait only; a slow body could keep on for ever.
        async with asyncio.timeout(limits.timeout_seconds), client.stream("GET", url, timeout=None) as response:
            status = response.status_code
            async for chunk in response.aiter_bytes():
                size += len(chunk)
                if size > limits.max_bytes:
                    error = f"the body is longer than {limits.max_bytes} bytes"
                    break
                body.update(chunk)
    except TimeoutError:
        error = f"not done within {limits.timeout_seconds:g} s"
    except httpx2.HTTPError as failure:
        error = f"{type(failure).__name__}: {failure}"
    ms = round((time.monotonic() - started) * 1000)
    if error:
        return Fetched(url=str(url), status=status, ms=ms, error=error)
    return Fetched(url=str(url), status=status, bytes=size, sha256=body.hexdigest(), ms=ms)
