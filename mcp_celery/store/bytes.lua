-- In front of every script: how many bytes are kept for a requestor. An index has its tasks by when they expire; a hash
-- beside it has the bytes of each, and under '' those of all.

-- Note how many bytes are kept of a task. `call`: on_index, or unless_other_type where a record names the index.
local function keep_bytes(index, task, bytes, call)
  local sizes = index .. ':bytes'
  local before = tonumber(call('HGET', sizes, task) or 0) or 0
  call('HINCRBY', sizes, '', bytes - before)
  if bytes > 0 then
    call('HSET', sizes, task, bytes)
  else
    call('HDEL', sizes, task)
    call('ZREM', index, task)
  end
end

-- How many bytes are kept of tasks that have not expired.
local function kept_bytes(index)
  for _, expired in ipairs(on_index('ZRANGEBYSCORE', index, '-inf', now_ms(), 'LIMIT', 0, 1000)) do
    keep_bytes(index, expired, 0, on_index)
  end
  return tonumber(on_index('HGET', index .. ':bytes', '') or 0) or 0
end

-- Let the books live as long as a task, and a second: they count it for as long as it is there.
local function count_bytes_for(index, left)
  for _, key in ipairs({index, index .. ':bytes'}) do
    live_at_least(key, left + 1000)
  end
end

-- Note how many bytes are kept of a task that has ended: a record, and its result where it is in this Redis.
local function keep_bytes_of_ended(record, result_bytes)
  local task = redis.call('HMGET', record, 'stored_in', 'key')
  if task[1] then
    keep_bytes(task[1], task[2], RECORD_BYTES + result_bytes, unless_other_type)
  end
end
