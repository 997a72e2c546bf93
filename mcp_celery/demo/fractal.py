"""The Mandelbrot set as a PNG image, in plain Python; it knows nothing of MCP."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Final

ESCAPE_RADIUS_SQUARED: Final = 65_536.0
"""Far out, so that the smooth count below has no visible steps."""
WHOLE_SET_WIDTH: Final = 3.0
COLOUR_CYCLE: Final = 24.0
"""Iterations after which the colours repeat."""
PHASES: Final = (0.0, 0.10, 0.20)
"""Where red, green and blue stand in the cycle: blues and golds."""
INSIDE: Final = b"\0\0\0"
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
PNG_8_BIT_RGB: Final = (8, 2, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A part of the complex plane, and how it is drawn.

    Args:
        width: Pixels.
        height: Pixels.
        center_x: Real part of the centre.
        center_y: Imaginary part of the centre.
        zoom: 1 shows the whole set.
        max_iterations: After how many a point counts as inside.
    """

    width: int
    height: int
    center_x: float
    center_y: float
    zoom: float
    max_iterations: int


def escape_count(x: float, y: float, max_iterations: int) -> float | None:
    """How fast a point leaves the set, as a smooth number of iterations.

    Args:
        x: Real part.
        y: Imaginary part.
        max_iterations: After how many it counts as inside.

    Returns:
        The number; None where the point is inside.
    """
    # The two largest parts of the set are known by formula; they would take the most iterations.
    q = (x - 0.25) ** 2 + y * y
    if q * (q + x - 0.25) <= 0.25 * y * y or (x + 1.0) ** 2 + y * y <= 0.0625:
        return None
    zx = zy = xx = yy = 0.0
    for count in range(max_iterations):
        zy = 2.0 * zx * zy + y
        zx = xx - yy + x
        xx, yy = zx * zx, zy * zy
        if xx + yy > ESCAPE_RADIUS_SQUARED:
            return count + 1.0 - math.log2(math.log2(xx + yy) / 2.0)
    return None


def colour_of(count: float | None) -> bytes:
    """The colour of a point, as three bytes."""
    if count is None:
        return INSIDE
    place = count / COLOUR_CYCLE
    return bytes(int(127.5 * (1.0 - math.cos(math.tau * (place + phase)))) for phase in PHASES)


def render_png(view: View) -> bytes:
    """Draw a view.

    Args:
        view: What to draw.

    Returns:
        A PNG file.
    """
    step = WHOLE_SET_WIDTH / view.zoom / view.width
    left = view.center_x - step * (view.width - 1) / 2
    top = view.center_y + step * (view.height - 1) / 2
    rows: list[bytes] = []
    for row in range(view.height):
        y = top - step * row
        counts = (escape_count(left + step * column, y, view.max_iterations) for column in range(view.width))
        # A row begins with the number of its filter: none.
        rows.append(b"\0" + b"".join(colour_of(count) for count in counts))
    header = struct.pack(">II5B", view.width, view.height, *PNG_8_BIT_RGB)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows), 9)), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
