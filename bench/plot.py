"""A bar chart as SVG, written by hand: no library draws a dozen rectangles with fewer dependencies."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from bench.report import number
from bench.run import Row
from bench.systems import OURS, PEER

_WIDTH, _LABELS, _FIGURES = 880, 290, 90
_BAR, _GAP, _GROUP_GAP, _TOP = 16, 3, 16, 58
_COLORS = {OURS: "#2f7d4f", PEER: "#9aa5b1"}
_SCALE = _WIDTH - _LABELS - _FIGURES


def svg(rows: Sequence[Row], title: str) -> str:
    """Bars of our figures and FastMCP's, each pair on a scale of its own.

    Args:
        rows: Those that say which figure is better; the others are left out.
        title: Above the chart.
    """
    drawn = [row for row in rows if OURS in row.figures and row.better is not None]
    parts: list[str] = []
    top = _TOP
    for row in drawn:
        bars = [(name, row.figures[name]) for name in _COLORS if name in row.figures]
        parts += _group(row, bars, top)
        top += len(bars) * (_BAR + _GAP) + _GROUP_GAP
    legend = "".join(
        f'<rect x="{_LABELS + 150 * index}" y="34" width="12" height="12" fill="{color}"/>'
        f'<text x="{_LABELS + 150 * index + 18}" y="44">{escape(name)}</text>'
        for index, (name, color) in enumerate(_COLORS.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#1f2933" role="img">\n'
        f'<title>{escape(title)}</title>\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        f'<text x="12" y="22" font-size="15" font-weight="600">{escape(title)}</text>\n{legend}\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _group(row: Row, bars: Sequence[tuple[str, float]], top: int) -> list[str]:
    largest = max(figure for _, figure in bars) or 1.0
    parts = [
        f'<text x="{_LABELS - 10}" y="{top + 12}" text-anchor="end">{escape(row.what)}</text>',
        (
            f'<text x="{_LABELS - 10}" y="{top + 27}" text-anchor="end" font-size="10" fill="#7b8794">'
            f"{row.better} is better</text>"
        ),
    ]
    for index, (name, figure) in enumerate(bars):
        y = top + index * (_BAR + _GAP)
        width = max(1.0, figure / largest * _SCALE)
        parts.append(f'<rect x="{_LABELS}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{_COLORS[name]}"/>')
        text = escape(number(figure, row.figure_unit))
        parts.append(f'<text x="{_LABELS + width + 6:.1f}" y="{y + 12}">{text}</text>')
    return parts
