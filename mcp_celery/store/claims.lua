-- In front of every script: who has a task's job. The claims of each worker are a set of compound keys, so that its
-- death concerns its own tasks only.

-- Give a task's job to a worker, and take it from the one that had it.
local function take(record, claims, worker, retries)
  local held = redis.call('HMGET', record, 'claim_worker', 'key')
  if held[1] and held[1] ~= worker then
    on_index('SREM', claims .. held[1], held[2])
  end
  on_index('SADD', claims .. worker, held[2])
  redis.call('PEXPIRE', claims .. worker, INDEX_LIFETIME_MS)
  redis.call('HSET', record, 'claim_worker', worker, 'claim_retries', retries)
  remember(record)
end

-- Take a task off the claims of the worker that has its job; the record still says which that was.
local function let_go(record, claims)
  local held = redis.call('HMGET', record, 'claim_worker', 'key')
  if held[1] then
    on_index('SREM', claims .. held[1], held[2])
  end
end

-- Give back what an open task holds, when it has ended: its counters, and the request that created it, whose arguments
-- and token no job will need. The reaper need not revoke its job. `result_bytes`: of its result, where that is in this
-- Redis.
local function give_back(record, result_bytes)
  release_counters(record)
  local snapshot = redis.call('HGET', record, 'snapshot_key')
  if snapshot then
    redis.call('DEL', snapshot)
  end
  keep_bytes_of_ended(record, result_bytes or 0)
  remember(record)
end

-- Let go of a task that has ended.
local function let_go_for_good(record, claims, result_bytes)
  let_go(record, claims)
  give_back(record, result_bytes)
end

