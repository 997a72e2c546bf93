-- In front of every script: the keys that it may use. Redis wants each of them in KEYS, but some names are in a record or in an
-- index that the script reads. The caller adds those that it expects, behind the keys that the head of a script describes.
-- A script asks for the others before it changes anything: its reply names them (reply.lua), and the caller calls it again
-- with them.

-- How many of KEYS, the last ones, the caller has added. The number is the last argument.
local MORE = tonumber(table.remove(ARGV))
-- What the names of keys that the script asks for begin with; '' for anything. It is the argument before.
local WITHIN = table.remove(ARGV)
local DECLARED = {}
for _ = 1, MORE do
  DECLARED[table.remove(KEYS)] = true
end
for _, key in ipairs(KEYS) do
  DECLARED[key] = true
end

-- The keys that this script asks for.
local asked_for = {}

-- The scripts that the caller calls next: {name, first key, other keys, arguments}.
local to_do = {}

-- Whether a key may be declared. Another node of a cluster may have one that is not of this namespace, whose keys have one
-- hash tag.
local function may_be_declared(key)
  local root = SHARDED and string.sub(SHARDED, 1, -#'never' - 1) or WITHIN
  return string.sub(key, 1, #root) == root
end

-- Whether a key is declared. One that is not, and may be, is asked for.
local function is_declared(key)
  if DECLARED[key] then
    return true
  end
  if may_be_declared(key) then
    asked_for[#asked_for + 1] = key
  end
  return false
end

-- Ask for those of several names that are not declared. Returns whether the script asks for nothing, and may go on.
local function are_declared(names)
  for _, name in ipairs(names) do
    is_declared(name)
  end
  return #asked_for == 0
end
