-- In front of every script: who has a task's job. The claims of each worker are a set of compound keys, so that its
-- death concerns its own tasks only.

-- Give a task's job to a worker, and take it from the one that had it.
local function take(record, claims, worker, retries)
  local held = redis.call('HMGET', record, 'claim_worker', 'key')
  if held[1] and held[1] ~= worker then
    redis.call('SREM', claims .. held[1], held[2])
  end
  redis.call('SADD', claims .. worker, held[2])
  redis.call('PEXPIRE', claims .. worker, INDEX_LIFETIME_MS)
  redis.call('HSET', record, 'claim_worker', worker, 'claim_retries', retries)
end

-- Delete the creating request's arguments and its caller's token: no job of the task will need them.
local function forget_request(record)
  local snapshot = redis.call('HGET', record, 'snapshot_key')
  if snapshot then
    redis.call('DEL', snapshot)
  end
end

-- Take a task off the claims of the worker that has its job; the record still says which that was.
-- Returns what it read: the worker, the task's compound key, and where the task counts as open.
local function let_go(record, claims)
  local held = redis.call('HMGET', record, 'claim_worker', 'key', 'counted_in')
  if held[1] then
    redis.call('SREM', claims .. held[1], held[2])
  end
  return held
end

-- The same for a task that has ended, which no longer counts as one of its requestor's open tasks.
local function let_go_for_good(record, claims)
  local held = let_go(record, claims)
  forget_request(record)
  if held[3] then
    redis.call('ZREM', held[3], held[2])
  end
end

