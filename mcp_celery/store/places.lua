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

-- How many tasks are before one that waits; nil where it does not wait.
local function number_ahead(record, key)
  local name = redis.call('HGET', record, 'waits_in')
  local line = name and (root_of_line(name, record) and name or name .. ':waiting')
  return line and unless_other_type('ZRANK', line, key) or nil
end

-- Give the free places of a limit to the tasks that wait for them. One that has to wait for a further limit waits there.
local function grant_places(root, name)
  local waiting = name .. ':waiting'
  for _ = 1, MOST_GRANTED do
    local key = on_index('ZRANGE', waiting, 0, 0)[1]
    if not key then
      return
    end
    local record = record_of(root, key)
    local task = record and unless_other_type('HMGET', record, 'key', 'status', 'waits_in', 'limits')
    if not task or (task[1] and task[1] ~= key) then
      remove_unreadable('ZREM', waiting, key)
    elseif task[2] ~= 'working' or task[3] ~= name then
      redis.call('ZREM', waiting, key)
    else
      local limits = limits_in(task[4], record)
      for _, limit in ipairs(limits) do
        if limit.name == name and not has_place(limit) then
          return
        end
      end
      redis.call('ZREM', waiting, key)
      redis.call('HDEL', record, 'waits_in')
      occupy(record, key, name)
      local next_one = take_places(record, key, limits)
      if next_one then
        wait_for_place(record, key, next_one)
      else
        go_on(root, record, key)
      end
    end
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
    grant_places(place[1], place[2])
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

-- Look at tasks that wait: whether they are where their records say, whether those that have places are open, and whether
-- places are free. Nothing of this happens unless keys were lost, or tasks have expired.
-- `most`: how many tasks to look at; `some`: at how many of those that have the places of each limit.
local function look_at_waiting(root, most, some)
  local names = {}
  for _, key in ipairs(on_index('ZRANGE', root .. ':waiting', 0, most - 1)) do
    local record = record_of(root, key)
    local task = record and unless_other_type('HMGET', record, 'key', 'status', 'waits_in')
    local name = task and task[3]
    if not task or (task[1] and task[1] ~= key) then
      remove_unreadable('ZREM', root .. ':waiting', key)
    elseif task[2] == 'working' and root_of_line(name, record) == root then
      wait_for_turn(root, record, key, name)
      names[window_of(root)] = true
    elseif task[2] ~= 'working' or not name or root_of_limit(name, record) ~= root then
      redis.call('ZREM', root .. ':waiting', key)
    else
      wait_for_place(record, key, name)
      names[name] = true
    end
  end
  for name in pairs(names) do
    for _, key in ipairs(on_index('ZRANDMEMBER', name, some)) do
      local record = record_of(root, key)
      local task = record and unless_other_type('HMGET', record, 'key', 'status')
      if not task or task[1] ~= key or not is_open(task[2]) then
        remove_unreadable('ZREM', name, key)
      end
    end
    grant_places(root, name)
  end
  grant_turns(root)
end

