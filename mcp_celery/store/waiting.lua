-- In front of every script: what tasks have in common that wait for a place of a limit, or for their caller's turn.

-- How many tasks go on in one step, where many places are free at once. The reaper goes on with the others.
local MOST_GRANTED = 100

-- Take a place. `name`: the sorted set of those that have one.
local function occupy(record, key, name)
  local task = redis.call('HMGET', record, 'created_at_ms', 'ttl_ms')
  on_index('ZADD', name, string.format('%.0f', task[1] + task[2]), key)
  live_at_least(name, rest_of_life(record))
end

-- Wait in a line, behind all older tasks of it. `name`: what the task waits for, as its record says it.
local function wait_in_line(root, record, key, name, line)
  on_index('ZADD', line, redis.call('HGET', record, 'created_at_ms'), key)
  live_at_least(line, rest_of_life(record))
  add_to_index(root .. ':waiting', now_ms(), key)
  redis.call('HSET', record, 'waits_in', name)
end

-- Let a task go on that has all its places: its job is due at once.
local function go_on(root, record, key)
  redis.call('HSET', record, 'status_message', '')
  on_index('ZREM', root .. ':waiting', key)
  local now = now_ms()
  add_to_index(root .. ':due', now - PUBLISHING_MS, key)
  publish(root .. DUE_CHANNEL, key)
  tell(record, record .. ':events', now)
  note(record, 'place_granted', redis.call('HGET', record, 'status'), now)
end

-- The record of a compound key in an index.
local function record_of(root, key)
  local owner = string.match(key, '^auth:[^:]+:[^:]+') or string.match(key, '^anon:[^:]+')
  return owner and root .. ':task:' .. owner
end

-- Ask for the records of the first tasks that wait in a line, up to that place from 0.
local function ask_for_records(root, line, last)
  for _, key in ipairs(on_index('ZRANGE', line, 0, last)) do
    local record = record_of(root, key)
    if record then
      is_declared(record)
    end
  end
end

