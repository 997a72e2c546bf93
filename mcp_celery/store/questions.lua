-- In front of every script: questions to a task's caller, and the answers to them.

-- Keep a question, with its place in the order of asking.
local function keep_question(record, questions, key, question)
  redis.call('HSET', questions, key, redis.call('HINCRBY', record, 'asked', 1) .. ':' .. question)
end

-- The keys of `end_after` and `live_until`, which a record names.
local function keys_of_life(record)
  local task = redis.call('HMGET', record, 'counted_in', 'stored_in', 'alias', 'listed_in', 'idempotency_in')
  local found = counters(task[1])
  if task[2] then
    found[#found + 1] = task[2] .. ':bytes'
  end
  for _, name in pairs({task[2], task[3], task[4], task[5]}) do
    found[#found + 1] = name or nil
  end
  return found
end

-- Let a record end so many ms after its creation (`known`: its fields created_at_ms, ttl_ms and key; sixth and seventh,
-- counted_in and stored_in).
local function end_after(record, expiry, known, ttl)
  local ends = string.format('%.0f', known[1] + ttl)
  redis.call('HSET', record, 'ttl_ms', string.format('%.0f', ttl))
  redis.call('PEXPIREAT', record, ends)
  add_to_index(expiry, ends, known[3])
  for _, counter in ipairs(counters(known[6])) do
    unless_other_type('ZADD', counter, 'XX', ends, known[3])
  end
  if known[7] then
    unless_other_type('ZADD', known[7], 'XX', ends, known[3])
  end
end

-- Let keys end with a record.
local function live_with(record, others)
  local left = rest_of_life(record)
  for _, other in ipairs(others) do
    redis.call('PEXPIRE', other, left)
  end
  return left
end

-- Let a task that waits live until a time (ms since the epoch; '' for no longer than it does), but no longer than `most`
-- ms in all, nor than its server allowed when it created the task; and everything that belongs to it for as long as its record.
-- Returns  its fields, as above.
local function live_until(record, others, expiry, time, most)
  local known = redis.call('HMGET', record, 'created_at_ms', 'ttl_ms', 'key', 'alias', 'listed_in', 'counted_in',
    'stored_in', 'max_ttl_ms', 'idempotency_in')
  if time ~= '' then
    local ttl = math.min(tonumber(time) - tonumber(known[1]), tonumber(most), tonumber(known[8] or most))
    if ttl > tonumber(known[2]) then
      end_after(record, expiry, known, ttl)
    end
  end
  local left = live_with(record, others)
  for _, other in pairs({known[4], known[9]}) do
    if other then
      redis.call('PEXPIRE', other, left)
    end
  end
  if known[5] then
    live_at_least(known[5], left)
  end
  for _, counter in ipairs(counters(known[6])) do
    live_at_least(counter, left)
  end
  if known[7] then
    count_bytes_for(known[7], left)
  end
  return known
end

-- Bring the questions of a task in line with the status that it was moved to: while some are open it stays
-- `input_required`, and with its end they go.
local function settle_questions(record, questions, answers)
  local status = redis.call('HGET', record, 'status')
  if status == 'working' and redis.call('EXISTS', questions) == 1 then
    redis.call('HSET', record, 'status', 'input_required')
  elseif not is_open(status) then
    redis.call('DEL', questions, answers)
  end
end

