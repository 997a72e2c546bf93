-- Let a task expire soon that no client needs any more: with everything that belongs to it, its stored result too.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  hash: the questions
-- KEYS[3]  hash: the answers
-- KEYS[4]  string: the snapshot of the creating request
-- KEYS[5]  sorted set: every task that the reaper looks at, by when it expires
-- KEYS[6]  sorted set: tasks that the reaper need not look at, by when they expire
-- It asks for what the record's fields `alias`, `result_key` and `idempotency_in` name.
-- ARGV[1]  when it goes, in ms since the epoch
-- Returns  nothing.
local known = redis.call('HMGET', KEYS[1], 'created_at_ms', 'ttl_ms', 'key', 'alias', 'result_key', 'counted_in',
  'stored_in', 'status', 'idempotency_in')
if not known[1] then
  return
end
local needed = keys_of_life(KEYS[1])
needed[#needed + 1] = known[5] or nil
if not are_declared(needed) then
  return
end
local ttl = math.max(ARGV[1] - known[1], 1)
if ttl < tonumber(known[2]) then
  end_after(KEYS[1], on_index('ZSCORE', KEYS[6], known[3]) and KEYS[6] or KEYS[5], known, ttl)
  live_with(KEYS[1], {KEYS[2], KEYS[3], KEYS[4], known[4] or KEYS[4], known[5] or KEYS[4], known[9] or KEYS[4]})
  note(KEYS[1], 'retired', known[8], now_ms())
end
