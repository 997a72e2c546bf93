-- Note which worker received a job, so that recovery knows whose death concerns it.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  sorted set: jobs that no worker has received, by since when
-- KEYS[3]  sorted set: the workers, by the time until which their last heartbeat holds
-- ARGV[1]  attempt of this delivery
-- ARGV[2]  Celery's count of retries of this delivery
-- ARGV[3]  the worker
-- ARGV[4]  now, in ms since the epoch
-- ARGV[5]  what the names of the workers' claims begin with
-- ARGV[6]  for how long the claim stands for the heartbeat of a worker that has none, in ms
-- Returns  1 if noted; 0 when the task is unknown, has ended, counts another attempt, or when another delivery of the
--          same job has begun already: then this one will not run, and the claim stays with the worker that runs it.
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'started_retries')
if not is_open(current[1]) or current[2] ~= ARGV[1] then
  return 0
end
if has_begun(current[3], ARGV[2]) then
  return 0
end
if not are_declared({ARGV[5] .. ARGV[3], unpack(keys_of_claim(KEYS[1], ARGV[5]))}) then
  return 0
end
take(KEYS[1], ARGV[5], ARGV[3], ARGV[2], KEYS[2], KEYS[3], ARGV[6])
redis.call('HSET', KEYS[1], 'claim_at_ms', ARGV[4])
note(KEYS[1], 'claimed', current[1], ARGV[4])
return 1
