"""What the sources of generated tools are written in: values, types and exceptions that users have, and odd ones."""

from __future__ import annotations

import asyncio
import collections
import enum
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

import anyio
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    SerializeAsAny,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import NotRequired, TypedDict  # noqa: UP035 - pydantic reads no other before Python 3.12

T = TypeVar("T")

# --- Types


class Color(enum.Enum):
    RED = "red"
    NONE = None
    WHEN = datetime(2024, 2, 29, tzinfo=UTC)


class Word(str, enum.Enum):  # noqa: UP042 - what users have
    HELLO = "hello"


class Level(enum.IntEnum):
    LOW = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Pair(NamedTuple):
    left: Any
    right: Any = None


Loose = collections.namedtuple("Loose", ["a", "b"])  # pyright: ignore[reportUntypedNamedTuple] - what users have


@dataclass
class Spot:
    x: float
    tags: list[str] = field(default_factory=list[str])
    inner: Any = None


@pydantic_dataclass
class Checked:
    count: int
    at: datetime | None = None


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class Point(BaseModel):
    x: float = 0.0
    y: Any = None


class Point3(Point):
    z: int = 3


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    ref: str = Field(default="#", alias="$ref")
    kind: str = Field(default="k", serialization_alias="__type__")
    value: Any = Field(default=None, alias="__value__")


class Computed(BaseModel):
    side: int = 2
    _secret: int = PrivateAttr(default=7)
    hidden: str = Field(default="hidden", exclude=True)

    @computed_field
    @property
    def area(self) -> int:
        return self.side**2


class Custom(BaseModel):
    at: datetime = datetime(2024, 2, 29, 23, 59, 59, 999_999, UTC)
    parts: set[int] = {1}

    @field_serializer("at")
    def _at(self, value: datetime) -> Any:
        return value.timetuple().tm_yday

    @field_serializer("parts", when_used="json")
    def _parts(self, value: set[int]) -> Any:
        return {str(one): None for one in sorted(value)}


class Whole(BaseModel):
    x: int = 1

    @model_serializer
    def _whole(self) -> Any:
        return {"whole": [self.x]}


class Unserializable(BaseModel):
    x: int = 1

    @field_serializer("x")
    def _x(self, value: int) -> Any:
        raise ValueError(f"no {value}")


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Box(BaseModel, Generic[T]):
    item: T


class Shapes(BaseModel):
    points: list[Point] = []
    exact: list[SerializeAsAny[Point]] = []


class Numbers(RootModel[list[float]]):
    pass


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    n: int = Field(ge=0, le=10)


class Picky(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def _n(cls, value: int) -> int:
        if value == 13:
            raise RuntimeError("a validator crashed")
        if value < 0:
            raise MCPError(-32_042, "a validator refused", {"n": value})
        return value


class Node(BaseModel):
    name: str = ""
    children: list[Node] = []


class Plain:
    """A class that pydantic knows nothing of."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __str__(self) -> str:
        return f"Plain({self.value})"


class Annotated_:  # noqa: N801 - a class with annotations, as users have
    x: int = 1
    y: str = "y"


class NoText:
    """Raises when it is shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class NotText:
    """Shows itself as no text."""

    def __str__(self) -> Any:
        return 5  # noqa: PLE0307


class Subtext(str):
    """A text with a mind of its own."""

    __slots__ = ()

    def __str__(self) -> str:
        return "another text"


class Subint(int):
    """A number that shows itself otherwise."""

    def __str__(self) -> str:
        return "many"

    __repr__ = __str__


class Subdict(dict[Any, Any]):
    """A dict that lists other things than it has."""

    def items(self) -> Any:
        return [("other", 1)]


class Listlike(Sequence[int]):
    """A sequence that is no list."""

    def __getitem__(self, index: Any) -> Any:
        found: list[Any] = [1, 2]
        return found[index]

    def __len__(self) -> int:
        return 2


# --- Values that no expression can say


def cyclic() -> list[Any]:
    """A list that holds itself."""
    found: list[Any] = [1]
    found.append(found)
    return found


def cyclic_dict() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["me"] = found
    return found


def nested(depth: int) -> Any:
    """A list in a list in a list."""
    found: Any = 0
    for _ in range(depth):
        found = [found]
    return found


def nested_dict(depth: int) -> Any:
    found: Any = 0
    for _ in range(depth):
        found = {"d": found}
    return found


def loose(cls: type[BaseModel], **values: Any) -> Any:
    """A model that was never validated."""
    return cls.model_construct(**values)


def counting(stop: int) -> Iterator[int]:
    """A generator that its tool returns."""
    yield from range(stop)


def failing() -> Iterator[int]:
    """A generator that raises on its way."""
    yield 1
    raise ValueError("a generator failed")


async def later(value: Any) -> Any:
    """A coroutine; nobody awaits it who returns it."""
    return value


# --- What bodies do


async def grouped(error: BaseException) -> None:
    """Raise in a task group: what comes out is a group of exceptions."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_raising(error))


async def _raising(error: BaseException) -> None:
    raise error


async def timed_out() -> None:
    """Wait for longer than it may."""
    async with asyncio.timeout(0):
        await asyncio.sleep(60)


async def given_up() -> None:
    """Wait in a scope that is cancelled, and go on."""
    with anyio.move_on_after(0):
        await anyio.sleep(60)


async def abandoned() -> None:
    """Leave a task behind that fails when its tool has ended."""
    _left.append(asyncio.get_running_loop().create_task(_raising(ValueError("nobody hears of it"))))


_left: list[asyncio.Task[None]] = []


def in_a_thread(error: BaseException) -> None:
    """Raise in a thread, which is the end of the thread alone."""
    thread = threading.Thread(target=asyncio.run, args=(_raising(error),))
    thread.start()
    thread.join()


def exits() -> NoReturn:
    sys.exit(3)


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


# --- Exceptions


class Fatal(BaseException):
    """An exception of a user that is no ``Exception``."""


class Ours(Exception):  # noqa: N818 - what users have
    """With more than one argument, so that it cannot be pickled."""

    def __init__(self, left: Any, *, right: Any) -> None:
        super().__init__(f"{left} and {right}")


class TextlessError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class NotTextError(Exception):
    def __str__(self) -> Any:
        return None  # noqa: PLE0307


class TextlessToolError(ToolError):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class HiddenToolError(ToolError):
    """Of a user, with an attribute of another kind."""

    def __init__(self, text: str, cause: Any) -> None:
        super().__init__(text)
        self.__cause__ = cause if isinstance(cause, BaseException) else None
        self.lock = asyncio.Lock()


class RefusedError(MCPError):
    """A JSON-RPC error of a user."""

    def __init__(self, code: int = -32_011) -> None:
        super().__init__(code, "refused", {"code": code})


def chained(outer: Exception, inner: Exception) -> NoReturn:
    """Raise one because of another."""
    try:
        raise inner  # noqa: TRY301
    except Exception as error:
        raise outer from error


def invalid() -> Any:
    """Raise pydantic's own error from a tool's body."""
    return Strict.model_validate({"n": "one"})
