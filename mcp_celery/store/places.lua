-- In front of every script: places of running jobs. A limit is a sorted set of the compound keys of the tasks that have
-- its places, by when they expire. Beside it, with `:waiting` behind its name, is the sorted set of those that wait for a
-- place, by when they were created: the oldest task is the next one. An index has all tasks that wait, by when the reaper
-- has looked at them.
--
-- A record names its limits in `counted_in`, and in `limits` also how many places each has, in the order in which all tasks
-- take them. A task that waits for a place keeps those that it has of the limits before, so no two tasks wait for each other.

-- What the names of all keys begin with, where a name is that of a limit and belongs to the server of a record; else nil:
-- it is forged, or of a counter.
local function root_of_limit(name, record)
  local root = string.match(name, '^(.*):running:[^:]+$')
  return root and string.sub(record, 1, #root + 6) == root .. ':task:' and root or nil
end

-- The limits that a field of a record names, in order.
local function limits_in(text, record)
  local found = {}
  for most, name in string.gmatch(text or '', '(%d+) ([^\n]+)') do
    if root_of_limit(name, record) then
      found[#found + 1] = {name = name, most = tonumber(most)}
    end
  end
  return found
end

-- Whether a limit has a free place. Tasks that have expired have none.
local function has_place(limit)
  on_index('ZREMRANGEBYSCORE', limit.name, '-inf', now_ms())
  return redis.call('ZCARD', limit.name) < limit.most
end

-- Wait for a place of a limit, behind all older tasks.
local function wait_for_place(record, key, name)
  wait_in_line(root_of_limit(name, record), record, key, name, name .. ':waiting')
end

-- Take the places that a task still needs, in order, until one is not free, or older tasks wait for it.
-- Returns  nil where the task has them all; else the limit that it has to wait for.
local function take_places(record, key, limits)
  for _, limit in ipairs(limits) do
    if not on_index('ZSCORE', limit.name, key) then
      if on_index('ZCARD', limit.name .. ':waiting') > 0 or not has_place(limit) then
        return limit.name
      end
      occupy(record, key, limit.name)
    end
  end
  return nil
end

-- Wait no more for a place of a limit.
local function stop_waiting(record, key, name)
  local root = root_of_limit(name, record)
  if root and on_index('ZREM', name .. ':waiting', key) == 1 then
    redis.call('HDEL', record, 'waits_in')
    on_index('ZREM', root .. ':waiting', key)
  end
end

-- How many tasks are before one that waits; nil where it does not wait, and where the script asks for the line.
local function number_ahead(record, key)
  local name = redis.call('HGET', record, 'waits_in')
  local line = name and (root_of_line(name, record) and name or name .. ':waiting')
  return line and is_declared(line) and unless_other_type('ZRANK', line, key) or nil
end

-- The keys of `release_places`, and of the counters that a record names. `counted_in`, `line`: its fields.
local function keys_of_counters(record, counted_in, line)
  local found = {}
  for _, name in ipairs(counters(counted_in)) do
    found[#found + 1] = name
    local root = root_of_limit(name, record)
    if root and name == window_of(root) then
      for _, key in ipairs(keys_of_turn(record, line)) do
        found[#found + 1] = key
      end
    elseif root then
      found[#found + 1] = name .. ':waiting'
      found[#found + 1] = root .. ':waiting'
    end
  end
  return found
end

-- The keys of `take_places` and `wait_for_place`.
local function keys_of_limits(record, limits)
  local found = {}
  for _, limit in ipairs(limits) do
    found[#found + 1] = limit.name
    found[#found + 1] = limit.name .. ':waiting'
    found[#found + 1] = root_of_limit(limit.name, record) .. ':waiting'
  end
  return found
end

-- The keys of `stop_waiting`, `leave_line` and `number_ahead`. `name`: the record's field `waits_in`.
local function keys_of_waiting(record, name)
  local root = name and (root_of_limit(name, record) or root_of_line(name, record))
  if not root then
    return {}
  end
  return {root_of_line(name, record) and name or name .. ':waiting', root .. ':waiting', root .. ':turns'}
end

-- Have the free places of a limit given to the tasks that wait for them (grant_places.lua).
local function note_free_places(root, name)
  local records = {}
  for _, key in ipairs(on_index('ZRANGE', name .. ':waiting', 0, 1)) do
    records[#records + 1] = record_of(root, key) or KEYS[1]
  end
  if #records > 0 then
    to_do[#to_do + 1] = {'grant_places', name, records, {}}
  end
end

-- Release the places of a task whose job has ended, and let others go on. `counted_in`: the record's field.
local function release_places(record, key, counted_in)
  local released, is_in_turn = {}, false
  for _, name in ipairs(counters(counted_in)) do
    local root = root_of_limit(name, record)
    if root and name == window_of(root) then
      is_in_turn = true
    elseif root then
      on_index('ZREM', name, key)
      released[#released + 1] = {root, name}
      stop_waiting(record, key, name)
    end
  end
  for _, place in ipairs(released) do
    note_free_places(place[1], place[2])
  end
  if is_in_turn then
    leave_window(record, key, redis.call('HGET', record, 'line'))
  end
end

-- Release the counters and the places of a task that has ended.
local function release_counters(record)
  local task = redis.call('HMGET', record, 'key', 'counted_in')
  for _, counter in ipairs(counters(task[2])) do
    unless_other_type('ZREM', counter, task[1])
  end
  if task[2] and string.find(task[2], ':running:', 1, true) then
    release_places(record, task[1], task[2])
  end
end

