-- Note which worker received a job, so that recovery knows whose death concerns it.
--
-- KEYS[1]  hash: the task record
-- ARGV[1]  attempt of this delivery
-- ARGV[2]  Celery's count of retries of this delivery
-- ARGV[3]  the worker's node name
-- ARGV[4]  1 if the worker's pool can end a running job, else 0
-- ARGV[5]  now, in ms since the epoch
-- Returns  1 if noted; 0 when the task is unknown, has ended, counts another attempt, or when another delivery of the
--          same job has begun already: then this one will not run, and the claim stays with the worker that runs it.
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'started_retries')
if (current[1] ~= 'working' and current[1] ~= 'input_required') or current[2] ~= ARGV[1] then
  return 0
end
if current[3] and tonumber(current[3]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'claim_worker', ARGV[3], 'claim_can_terminate', ARGV[4], 'claim_at_ms', ARGV[5])
return 1
