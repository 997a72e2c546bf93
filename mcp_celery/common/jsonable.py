"""JSON of the values that user code hands over: one conversion for stores, the wire and log lines.

The conversion of objects is pydantic's, which is the SDK's own, so a task shows what a call in the foreground shows.
What JSON or UTF-8 cannot carry is replaced: NaN and the infinities by ``null``, a lone surrogate by ``?``.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final, SupportsFloat, cast

import pydantic_core

_DEPTH_TO_LOOK_AT: Final = 200
_LEVELS_OF_A_MESSAGE: Final = 5


class NotJSONError(ValueError):
    """A value has no JSON form. The text names its type and shows nothing of it."""

    def __init__(self, value: object) -> None:
        super().__init__(f"{type(value).__name__} has no JSON form")


def json_value(value: Any) -> Any:
    """Convert a value of user code to plain JSON values.

    >>> import datetime, decimal
    >>> json_value({"when": datetime.date(2025, 1, 1), "sum": decimal.Decimal("1.5"), "of": {1}})
    {'when': '2025-01-01', 'sum': '1.5', 'of': [1]}

    Args:
        value: Anything.

    Returns:
        A value that JSON text and UTF-8 carry unchanged.

    Raises:
        NotJSONError: It, or something in it, has no JSON form.
    """
    try:
        return json.loads(json_text(pydantic_core.to_jsonable_python(value)))
    except Exception:  # noqa: BLE001 - serializers of user code raise anything
        raise NotJSONError(value) from None


def json_text(value: Any) -> str:
    r"""Encode plain JSON values as compact text that UTF-8 can carry.

    >>> json_text({"name": "caf\udce9", "size": float("nan")})
    '{"name":"caf?","size":null}'

    Args:
        value: Dicts with text keys, lists, texts, numbers, booleans and None.

    Raises:
        NotJSONError: It holds something else, an integer of more than 4,300 digits, or is nested too deeply.
    """
    try:
        try:
            return utf8_text(_dumps(value))
        except ValueError:  # NaN or an infinity, which is rare: looking for them first would cost every result
            return utf8_text(_dumps(_without_nan(value)))
    except (TypeError, ValueError, RecursionError):
        raise NotJSONError(value) from None


def is_sendable(text: str) -> bool:
    """Whether the SDK can send JSON text inside a message: pydantic encodes at most 255 levels.

    Args:
        text: JSON.
    """
    if text.count("{") + text.count("[") < _DEPTH_TO_LOOK_AT:
        return True
    value = json.loads(text)
    for _ in range(_LEVELS_OF_A_MESSAGE):
        value = [value]
    try:
        pydantic_core.to_json(value)
    except ValueError:
        return False
    return True


def utf8_text(text: str) -> str:
    r"""Replace lone surrogates, which names of files can hold (``os.fsdecode``) and UTF-8 cannot.

    >>> utf8_text("caf\udce9")
    'caf?'
    >>> utf8_text("\ud83d\ude00")
    '😀'
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # Two halves of one character that came apart are joined first.
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        return joined.encode(errors="replace").decode()
    return text


def text_of(value: Any) -> str:
    """Show a value of user code as text for people: text as it is, everything else as JSON, else the type's name."""
    if isinstance(value, str):
        return utf8_text(value)
    try:
        return json_text(json_value(value))
    except NotJSONError:
        return f"<{type(value).__name__}>"


def finite_number(value: object) -> float | None:
    """A number that JSON can carry; None for everything else, text included.

    >>> finite_number(3), finite_number(float("inf")), finite_number("50 %"), finite_number(10**400)
    (3, None, None, None)
    """
    if isinstance(value, str | bytes | bytearray) or not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)
        if not math.isfinite(number):
            return None
        return int(value) if isinstance(value, int) else number
    except Exception:  # noqa: BLE001 - __float__ of user code raises anything
        return None


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in cast("list[Any]", value)]
    return value
