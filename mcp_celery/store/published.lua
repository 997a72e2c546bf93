-- Note that the job that was due, or the first one of a task with an idempotency key, is with the broker.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  sorted set: tasks whose next job is still to be published, by since when
-- KEYS[3]  sorted set: jobs that no worker has received, by since when
-- ARGV[1]  attempt of the job
-- It asks for what the record's field `idempotency_in` names.
-- Returns  1 if noted; 0 when it was already, or the task counts another attempt by now.
local current = redis.call('HMGET', KEYS[1], 'attempt', 'key', 'retry_at_ms', 'idempotency_in', 'work')
if current[4] and not is_declared(current[4]) then
  return 0
end
if current[4] then
  unless_other_type('HDEL', current[4], 'publishing')
end
if current[1] ~= ARGV[1] then
  return 0
end
local was_due = on_index('ZREM', KEYS[2], current[2])
-- Noted again, because the answer was lost, it has been with the broker since the first time.
if not current[5] and awaits_claim(KEYS[1]) and (was_due == 1 or not on_index('ZSCORE', KEYS[3], current[2])) then
  add_to_index(KEYS[3], math.max(now_ms(), tonumber(current[3] or 0)), current[2])
end
return was_due
