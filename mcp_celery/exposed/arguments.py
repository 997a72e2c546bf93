"""The arguments of exposed jobs: what callers see of a job's signature, and values as the job's message has them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from mcp_celery.broker.job_message import SIGNED
from mcp_celery.engine import JSONObject
from mcp_celery.errors import ConfigurationError, InvalidRequestError

_STARS: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_KNOWN_TO_JSON: Final = (datetime, date, time, Decimal, UUID)
"""What kombu's JSON carries as what it is; any other serializer's reader gets text."""
_KOMBU_TAGS: Final = {"__type__", "__value__"}
"""The keys of an object by which kombu's JSON carries values of other types (``kombu.utils.json.object_hook``)."""


def signature_of(fn: Callable[..., Any], name: str) -> inspect.Signature:
    """A job's signature with its type hints resolved.

    Raises:
        ConfigurationError: A type hint cannot be resolved, or a parameter cannot be given by name.
    """
    try:
        found = inspect.signature(fn, eval_str=True)
    except (NameError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"{name!r} cannot be exposed: its signature cannot be read ({error}); describe it with arguments=…"
        ) from error
    for parameter in found.parameters.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise ConfigurationError(
                f"{name!r} cannot be exposed: its parameter {parameter.name!r} is positional-only, and arguments are "
                "sent by name"
            )
    return found


def visible_signature(
    signature: inspect.Signature, name: str, *, hidden: Collection[str], fixed: Mapping[str, Any]
) -> inspect.Signature:
    """The part of a signature that callers see.

    Args:
        signature: The job's.
        name: The job's, for errors.
        hidden: Parameters that keep their defaults.
        fixed: Parameters that get these values.

    Raises:
        ConfigurationError: There is no such parameter, or a hidden one has no default.
    """
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in signature.parameters.values())
    named = {key: one for key, one in signature.parameters.items() if one.kind not in _STARS}
    for key in hidden:
        if key not in named:
            raise ConfigurationError(f"{name!r} cannot be exposed: hide names {key!r}, which it does not take")
        if key not in fixed and named[key].default is inspect.Parameter.empty:
            raise ConfigurationError(
                f"{name!r} cannot be exposed: the hidden parameter {key!r} has no default; fix its value with fixed=…"
            )
    for key in fixed:
        if key not in named and not takes_any:
            raise ConfigurationError(f"{name!r} cannot be exposed: fixed names {key!r}, which it does not take")
    shown = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for key, one in named.items()
        if key not in hidden and key not in fixed
    ]
    return signature.replace(parameters=shown)


def given(arguments: BaseModel, *, defaults: bool) -> JSONObject:
    """The arguments of a call, by the names that the job knows.

    Args:
        arguments: Those that the caller gave, validated.
        defaults: Whether the model has defaults of its own; else they are the job's, and left to it.
    """
    named = {
        field.alias or name: getattr(arguments, name)
        for name, field in type(arguments).model_fields.items()
        if defaults or name in arguments.model_fields_set
    }
    return {**named, **(arguments.model_extra or {})}


def sendable(value: Any, serializer: str) -> Any:
    """A validated argument as a message can carry it: models, enums and the like in the form that they have in JSON.

    Args:
        value: The argument.
        serializer: Celery's name of the message's serializer.

    Raises:
        InvalidRequestError: It holds an object that the reader's serializer would take for a value of another type, or
            for an error: the caller, not the job's author, would choose the type.
    """
    if isinstance(value, BaseModel):
        return sendable(value.model_dump(by_alias=True), serializer)
    if isinstance(value, Mapping):
        sent = {str(key): sendable(one, serializer) for key, one in cast("Mapping[Any, Any]", value).items()}
        if serializer in ("json", SIGNED):
            _require_no_tags(sent)
        return sent
    if isinstance(value, list | tuple | set | frozenset):
        return [sendable(one, serializer) for one in cast("list[Any]", value)]
    if serializer in ("json", "pickle") and type(value) in _KNOWN_TO_JSON:
        return value
    made = to_jsonable_python(value)  # of a dataclass an object that may hold any
    return sendable(made, serializer) if isinstance(made, dict | list) else made


def require_sendable(signature: Mapping[str, Any]) -> None:
    """Refuse a canvas that holds what :func:`sendable` refuses, in any place: a part may travel in another's message.

    Args:
        signature: The whole canvas.

    Raises:
        InvalidRequestError: It holds such an object.
    """
    left: list[Any] = [signature]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            _require_no_tags(cast("Mapping[Any, Any]", one))
            left.extend(cast("Mapping[Any, Any]", one).values())
        elif isinstance(one, list | tuple | set | frozenset):
            left.extend(cast("list[Any]", one))


def _require_no_tags(value: Mapping[Any, Any]) -> None:
    if set(value) == _KOMBU_TAGS:
        raise InvalidRequestError(
            "An argument holds an object with no keys but __type__ and __value__, which have a meaning of their own in "
            "the messages of this server"
        )
