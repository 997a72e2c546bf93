r"""Escapes what a terminal or a log viewer would obey instead of show: control characters, bidi controls, separators.

Nothing is lost: each such character is written as JSON's ``\\u…`` escape. So escaped JSON text has the same value.
"""

from __future__ import annotations

import re
from typing import Final

_OBEYED: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: colours, cursor movement, window titles
    r"\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # bidi controls, invisible characters
    r"\ud800-\udfff"  # lone surrogates, which no output can encode
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"  # format characters of other planes
)


def escaped(text: str, *, keep: str = "") -> str:
    r"""Escape control and format characters.

    >>> escaped("plain \x9b31m red \u202e")
    'plain \\u009b31m red \\u202e'

    Args:
        text: Any text.
        keep: Characters that stay as they are, such as the line ends of a traceback.

    Returns:
        The text with each such character as ``\uXXXX``, above U+FFFF as two of them.
    """
    return _OBEYED.sub(lambda found: found[0] if found[0] in keep else _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
