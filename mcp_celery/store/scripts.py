"""The Lua scripts, and one call of a script as data: which keys, which arguments, and how its reply reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, Final, Generic, TypeVar

from redis.exceptions import ClusterCrossSlotError

from mcp_celery.common.formats import NewerFormatError
from mcp_celery.engine import RECORD_BYTES, Observers, new_call
from mcp_celery.engine.places import WAITING_FOR_PLACE
from mcp_celery.engine.recovery.model import DUE, PUBLISHING_MS
from mcp_celery.engine.turns import SMALLEST_WINDOW, WINDOW_FACTOR
from mcp_celery.engine.webhooks import MOST_WAITING, WEBHOOK_LIFETIME_MS
from mcp_celery.errors import Fault, StoredDataError, StoreUnavailableError
from mcp_celery.sealing import SealError
from mcp_celery.store.fields import LUA
from mcp_celery.store.keys import INDEX_LIFETIME_MS, RedisKeys
from mcp_celery.store.named import NamedKeys, Names, Use
from mcp_celery.store.replies import REPLY_MARK, OpenedReply, opened
from mcp_celery.store.unreadable import UNREADABLE, reason_of, shown

Reply = TypeVar("Reply")
MOST_CALLS: Final = 20
"""How often a script is called that asks for further keys each time."""
MOST_REMEMBERED: Final = 50
"""How many such keys a process remembers for a record and a use."""
IN_PARTS: Final = frozenset({"grant_places", "grant_turns"})
"""Scripts that do a part of their work with the keys that they have. The reaper does what is left."""


def file_text(name: str) -> str:
    """The text of a file of Lua, by its name."""
    return resources.files("mcp_celery.store").joinpath(f"{name}.lua").read_text(encoding="utf-8")


_NAMES: Final = (
    *("create", "earlier", "delete", "retire", "keep", "load", "page", "transition", "finish", "start", "claim"),
    *("failed", "present", "attend"),
    *("ask", "heard", "withdraw", "park", "answer", "published"),
    *("beat", "bury", "sweep", "recover", "requeue", "hand_back", "claimed", "lost", "mark", "overdue"),
    *("watch", "prune", "look", "held", "grant_places", "grant_turns"),
    *("webhooks", "webhook"),
    "index",
)
_DUE_CHANNEL: Final = RedisKeys("", "").channel(DUE.scope, DUE.task_id).removeprefix(":")
"""The channel that says that jobs have become due, behind what the names of all keys begin with."""
_UNSHARDED: Final = "local SHARDED = false\n"
_SHARDED: Final = "local SHARDED = table.remove(KEYS)\n"  # see keys_of
_CONSTANTS: Final = (
    f"{_UNSHARDED}"
    f"local INDEX_LIFETIME_MS, RECORD_BYTES, REPLY_MARK = {INDEX_LIFETIME_MS}, {RECORD_BYTES}, '{REPLY_MARK}'\n"
    f"local PUBLISHING_MS, WEBHOOK_LIFETIME_MS = {PUBLISHING_MS}, {WEBHOOK_LIFETIME_MS}\n"
    f"local MOST_WEBHOOKS = {MOST_WAITING}\n"
    f"local WINDOW_FACTOR, SMALLEST_WINDOW = {WINDOW_FACTOR}, {SMALLEST_WINDOW}\n"
    f"local DUE_CHANNEL, WAITING_FOR_PLACE = '{_DUE_CHANNEL}', '{WAITING_FOR_PLACE}'\n{LUA}"
)
_IN_FRONT: Final = (
    "declared",
    "common",
    "bytes",
    "waiting",
    "turns",
    "places",
    "claims",
    "questions",
    "once",
    "repeated",
)
"""The files that are in front of the scripts, in this order."""
_COMMENT: Final = re.compile(r"^ *--.*\n", re.MULTILINE)
_FUNCTION: Final = re.compile(r"^local function (\w+)\(.*?^end\n", re.MULTILINE | re.DOTALL)
_WORD: Final = re.compile(r"\w+")


def written(read_file: Callable[[str], str] = file_text) -> dict[str, str]:
    """The texts of all scripts, by name.

    Args:
        read_file: Gives the text of a file, by its name.
    """
    shared = _COMMENT.sub("", _CONSTANTS + "".join(map(read_file, _IN_FRONT)))
    reply = read_file("reply")
    texts: dict[str, str] = {}
    for name in _NAMES:
        body = _COMMENT.sub("", f"local function act()\n{read_file(name)}\nend\n{reply}")
        texts[name] = _needed(shared, body) + body
    return texts


def _needed(shared: str, body: str) -> str:
    """What a script needs of what scripts share: Redis makes all its functions anew for each call, used or not.

    Args:
        shared: Functions, and statements that are always kept.
        body: The script.
    """
    functions = {found[1]: found[0] for found in _FUNCTION.finditer(shared)}
    used = set[str]()
    unread = [_FUNCTION.sub("", shared), body]
    while unread:
        called = {word for word in _WORD.findall(unread.pop()) if word in functions} - used
        used |= called
        unread += [functions[name] for name in called]
    return _FUNCTION.sub(lambda found: found[0] if found[1] in used else "", shared)


SCRIPTS: Final = written()
NAMED: Final = frozenset({"transition", "finish", "hand_back", "ask", "park", "answer", "recover", "requeue", "lost"})
"""Scripts that know a call again by its name, and then change nothing and give their first answer (repeated.lua)."""
NEVER_REPEATED: Final = frozenset({"failed", "withdraw", "watch", "webhooks", "webhook"})
"""Scripts that are not called again when their answer was lost: ``failed`` would count twice; the answers that
``withdraw`` gives, the tasks that ``watch`` gives, and the webhooks that ``webhooks`` and ``webhook`` give, are given
once. All others change nothing the second time.
"""


def scripts_of(keys: RedisKeys) -> Mapping[str, str]:
    """The texts of all scripts, by name."""
    if not keys.is_sharded:
        return SCRIPTS
    return {name: text.replace(_UNSHARDED, _SHARDED, 1) for name, text in SCRIPTS.items()}


def keys_of(command: Command[Any], keys: RedisKeys) -> list[str | bytes]:
    """The keys that a script declares. On a cluster one more follows, which never exists: while the slot of a namespace
    is on its way to another node, the cluster refuses to begin a command on a key that does not exist. Else scripts
    would begin whose keys are all still on this node, and ask for others that are not.
    """
    return [*command.keys, *command.more, keys.never] if keys.is_sharded else [*command.keys, *command.more]


@dataclass(frozen=True, slots=True)
class Command(Generic[Reply]):
    """One call of a Lua script.

    Attributes:
        script: Its name in :data:`SCRIPTS`.
        keys: KEYS.
        args: ARGV.
        parse: Reads the reply.
        call: The call's name, for the scripts :data:`NAMED`. The caller gives one where it may make the call again by
            itself.
        more: Keys behind ``keys`` that the script may use: those that a record names, as far as they are known. The
            script asks for those that are missing (declared.lua).
        use: For what the process may know such keys of the record that is the first of ``keys``; None: for nothing.
        within: What the names of such keys have to begin with: others are of forged records, and on other nodes of a
            cluster. Empty: anything.
        learned: Such keys of this record, which the process knows once the call has succeeded.
    """

    script: str
    keys: Sequence[str | bytes]
    args: Sequence[str | bytes | int]
    parse: Callable[[Any], Reply]
    call: str = field(default_factory=new_call)
    more: Names = ()
    use: Use | None = None
    within: bytes = b""
    learned: Mapping[Use, Names] = field(default_factory=dict[Use, Names])

    @property
    def argv(self) -> list[str | bytes | int]:
        """ARGV, with the call's name behind it, and what declared.lua reads."""
        return [*self.args, self.call if self.script in NAMED else "", self.within, len(self.more)]

    def with_more(self, names: Names) -> Command[Reply]:
        """The same call with more keys.

        Args:
            names: The keys.
        """
        return replace(self, more=[*self.more, *names])

    @property
    def may_be_repeated(self) -> bool:
        """Whether it may be sent again when its answer was lost: the script may have run."""
        return self.script not in NEVER_REPEATED


def added_to(command: Command[Reply], named: NamedKeys) -> Command[Reply]:
    """The call of a script with the keys that the process knows of."""
    names = named.of(command.use, str(command.keys[0])) if command.use is not None else ()
    return command.with_more(names) if names else command


def remember(command: Command[Any], named: NamedKeys) -> None:
    """Remember the keys that a script has asked for."""
    if command.use is not None and len(command.more) <= MOST_REMEMBERED:
        named.learn(command.use, str(command.keys[0]), command.more)


def crossed(command: Command[Reply], error: StoreUnavailableError) -> Command[Reply]:
    """The call in place of one that a cluster has refused because its keys are on several nodes.

    Args:
        command: What was called.
        error: The error.

    Raises:
        StoreUnavailableError: The error, where no key that a record names is the reason.
    """
    tag = f"{str(command.keys[0]).partition('}')[0]}}}".encode()
    more = [name for name in command.more if (name.encode() if isinstance(name, str) else name).startswith(tag)]
    if len(more) == len(command.more) or not isinstance(error.__cause__, ClusterCrossSlotError):
        raise error
    return replace(command, more=more, within=tag)


def without_end(command: Command[Any]) -> None:
    """A script has asked for keys too often.

    Raises:
        StoredDataError: It has done nothing yet.
    """
    if command.script not in IN_PARTS:
        raise StoredDataError(f"{shown(command.keys[0])} names other keys each time")


def heard(reply: Any, observers: Observers) -> OpenedReply:
    """Take a script's reply apart. What the script removed is logged.

    Args:
        reply: The script's reply.
        observers: To whom the changes are reported that the script made.
    """
    parts = opened(reply)
    for transition in parts.transitions:
        observers.notify(transition)
    return parts


def read(command: Command[Reply], own: Any) -> Reply:
    """The answer in a script's own reply.

    Args:
        command: What was called.
        own: The reply, without its envelope.

    Raises:
        StoredDataError: The reply holds fields that cannot be read.
    """
    try:
        return command.parse(own)
    except UNREADABLE as error:
        reason = f"{shown(command.keys[0])} cannot be read: {reason_of(error)}"
        raise StoredDataError(reason, _fault(error)) from error


def _fault(error: Exception) -> Fault:
    if isinstance(error, NewerFormatError):
        return "newer"
    return "refused" if isinstance(error, SealError) else "damaged"
