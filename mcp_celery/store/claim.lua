-- Note which worker received a job, so that recovery knows whose death concerns it.
--
-- KEYS[1]  hash: the task record
-- ARGV[1]  attempt of this delivery
-- ARGV[2]  the worker's node name
-- ARGV[3]  1 if the worker's pool can end a running job, else 0
-- ARGV[4]  now, in ms since the epoch
-- Returns  1 if noted, 0 when the task is unknown, has ended, or counts another attempt.
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt')
if (current[1] ~= 'working' and current[1] ~= 'input_required') or current[2] ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'claim_worker', ARGV[2], 'claim_can_terminate', ARGV[3], 'claim_at_ms', ARGV[4])
return 1
