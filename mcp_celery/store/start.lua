-- Let the body of a job begin, once for each (attempt, retries), whatever the broker delivers.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  string: the snapshot of the creating request
-- ARGV[1]  attempt of this delivery
-- ARGV[2]  Celery's count of retries of this delivery
-- ARGV[3]  now, in ms since the epoch
-- ARGV[4]  a name of this delivery, which may ask again when the answer was lost
-- Returns  nil when the body must not run, else the snapshot ('' when it is gone).
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'started_retries', 'started_by')
if current[1] ~= 'working' or current[2] ~= ARGV[1] then
  return nil
end
local again = current[3] == ARGV[2] and current[4] == ARGV[4]
if current[3] and tonumber(current[3]) >= tonumber(ARGV[2]) and not again then
  return nil
end
redis.call('HSET', KEYS[1], 'started_retries', ARGV[2], 'started_at_ms', ARGV[3], 'started_by', ARGV[4])
return redis.call('GET', KEYS[2]) or ''
