"""Makes scripts refuse keys that their callers do not declare, as strict servers do: Redis wants all keys in KEYS."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from typing_extensions import override

_CHECK: Final = """\
local redis = (function(plain)
  local declared = {}
  for _, key in ipairs(KEYS) do
    declared[key] = true
  end
  local without_keys = {TIME = true, PUBLISH = true, SPUBLISH = true}
  local of_keys = {DEL = true, EXISTS = true}
  local of_one_key = {}
  for command in string.gmatch('%(of_one_key)s', '%%u+') do
    of_one_key[command] = true
  end
  local function check(command, ...)
    local number = without_keys[command] and 0 or of_keys[command] and select('#', ...) or of_one_key[command] and 1
    if not number then
      error({err = 'NOPERM the check of keys does not know which arguments of ' .. command .. ' are keys'})
    end
    for place = 1, number do
      local key = (select(place, ...))
      if not declared[key] then
        error({err = 'NOPERM script %(name)s: key ' .. tostring(key) .. ' of ' .. command .. ' is not in KEYS'})
      end
    end
  end
  return setmetatable({
    call = function(...)
      check(...)
      return plain.call(...)
    end,
    pcall = function(...)
      check(...)
      return plain.pcall(...)
    end,
  }, {__index = plain})
end)(redis)
"""
_OF_ONE_KEY: Final = (
    "GET SET INCRBY PEXPIRE PEXPIREAT PTTL HDEL HEXISTS HGET HGETALL HINCRBY HLEN HMGET HSET HSETNX LLEN LPUSH RPOP "
    "SADD SREM SMEMBERS SRANDMEMBER SCARD ZADD ZCARD ZCOUNT ZRANDMEMBER ZRANGE ZRANGEBYSCORE ZRANK ZREM "
    "ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE ZSCORE"
)
REFUSAL: Final = "is not in KEYS"
"""What the error of such a script says. To the store it is one of permissions, which it does not take for damage."""


def checked(scripts: dict[str, str]) -> dict[str, str]:
    """Scripts that refuse keys that are not declared.

    Args:
        scripts: Their texts, by name.
    """
    return {name: _CHECK % {"name": name, "of_one_key": _OF_ONE_KEY} + text for name, text in scripts.items()}


class _Refusals(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    @override
    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if REFUSAL in text or "the check of keys" in text:
            self.texts.append(text)


@contextmanager
def no_refusals() -> Generator[None]:
    """No script uses a key that is not declared, also where what calls it goes on without its answer."""
    refusals = _Refusals()
    logger = logging.getLogger("mcp_celery")
    logger.addHandler(refusals)
    try:
        yield
    finally:
        logger.removeHandler(refusals)
    assert refusals.texts == []
