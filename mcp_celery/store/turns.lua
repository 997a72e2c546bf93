-- In front of every script: callers take turns. The broker has the jobs of a few tasks (the window), the store those of
-- all others. The window is a sorted set of compound keys, by when the tasks expire. The tasks of each caller that wait
-- for their turn are a line: a sorted set, by when they were created. The lines are a sorted set (`turns`) in the order
-- in which they have their turns.
--
-- A record names its caller's line. A task leaves the window when it has no job any more: it has ended, waits for its
-- client, for a retry or for a place of a limit. A job that starts is in the window in any case.

-- What the names of all keys begin with, where a name is that of a line and belongs to the server of a record; else nil.
local function root_of_line(name, record)
  local root = string.match(name or '', '^(.*):turns:[^:]+$')
  return root and string.sub(record, 1, #root + 6) == root .. ':task:' and root or nil
end

local function window_of(root)
  return root .. ':running:window'
end

-- Count the slots of the live workers again. The sum stands with an empty name beside those of each.
local function count_slots(root)
  local slots, sum = root .. ':slots', 0
  if on_index('HLEN', slots) == 0 then
    return
  end
  for _, worker in ipairs(on_index('ZRANGEBYSCORE', root .. ':workers', '(' .. now_ms(), '+inf')) do
    sum = sum + (tonumber(redis.call('HGET', slots, worker) or 0) or 0)
  end
  redis.call('HSET', slots, '', sum)
end

-- Whether the broker may have one more job.
local function has_room(root)
  local window = window_of(root)
  on_index('ZREMRANGEBYSCORE', window, '-inf', now_ms())
  local slots = tonumber(on_index('HGET', root .. ':slots', '') or 0) or 0
  local most = slots > 0 and math.ceil(slots * WINDOW_FACTOR) or SMALLEST_WINDOW
  return redis.call('ZCARD', window) < most
end

-- Let a line have its next turn after all others.
local function go_last(root, line)
  local last = tonumber(on_index('ZREVRANGE', root .. ':turns', 0, 0, 'WITHSCORES')[2] or 0) or 0
  add_to_index(root .. ':turns', string.format('%.0f', last + 1), line)
end

-- Wait for a turn.
local function wait_for_turn(root, record, key, line)
  wait_in_line(root, record, key, line, line)
  if not on_index('ZSCORE', root .. ':turns', line) then
    go_last(root, line)
  end
end

-- Wait no more for a turn.
local function leave_line(record, key, line)
  local root = root_of_line(line, record)
  if root and on_index('ZREM', line, key) == 1 then
    redis.call('HDEL', record, 'waits_in')
    on_index('ZREM', root .. ':waiting', key)
    if redis.call('EXISTS', line) == 0 then
      on_index('ZREM', root .. ':turns', line)
    end
  end
end

-- The keys of `leave_window`, `enter_window`, `may_go` and `take_turn`. `line`: the record's field.
local function keys_of_turn(record, line)
  local root = root_of_line(line, record)
  if not root then
    return {}
  end
  return {line, window_of(root), root .. ':waiting', root .. ':turns', root .. ':slots'}
end

-- Have tasks go on, one of each line in turn, while the broker may have more jobs (grant_turns.lua).
local function note_free_turns(root)
  local lines = on_index('ZRANGE', root .. ':turns', 0, 1)
  if #lines > 0 then
    to_do[#to_do + 1] = {'grant_turns', window_of(root), lines, {}}
  end
end

-- Whether the job of one more task may go to the broker at once: there is room, and no task waits for it.
local function may_go(root)
  return on_index('ZCARD', root .. ':turns') == 0 and has_room(root)
end

-- Wait for a turn, which may come soon. Returns how many tasks of its caller are before it.
local function await_turn(root, record, key, line)
  wait_for_turn(root, record, key, line)
  local ahead = redis.call('ZRANK', line, key)
  redis.call('HSET', record, 'status_message', string.format(WAITING_FOR_PLACE, ahead))
  note_free_turns(root)
  return ahead
end

-- Let the job of a task go to the broker, or wait for its caller's turn. Returns whether it may go.
local function take_turn(record, key, line)
  local root = root_of_line(line, record)
  if root and not may_go(root) then
    await_turn(root, record, key, line)
    return false
  end
  if root then
    occupy(record, key, window_of(root))
  end
  return true
end

-- Be in the window, whether or not there is room: a job starts.
local function enter_window(record, key, line)
  local root = root_of_line(line, record)
  if root then
    leave_line(record, key, line)
    occupy(record, key, window_of(root))
  end
end

-- Leave the window, and let others go on.
local function leave_window(record, key, line)
  local root = root_of_line(line, record)
  if root then
    leave_line(record, key, line)
    on_index('ZREM', window_of(root), key)
    note_free_turns(root)
  end
end

