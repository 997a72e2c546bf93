-- In front of every script: who has a task's job. The claims of each worker are a set of compound keys, so that its
-- death concerns its own tasks only. The jobs that no worker has are a sorted set (`unclaimed`), so that those are found
-- which the broker has lost.

-- The keys of `take`, `let_go` and `remember`.
local function keys_of_claim(record, claims)
  local task = redis.call('HMGET', record, 'claim_worker', 'remembered_in')
  local found = {}
  if task[1] then
    found[1] = claims .. task[1]
  end
  found[#found + 1] = task[2] or nil
  return found
end

-- The keys of `let_go_for_good`, which a record names.
local function keys_of_end(record, claims)
  local task = redis.call('HMGET', record, 'counted_in', 'line', 'snapshot_key', 'stored_in', 'claim_worker',
    'remembered_in')
  local found = keys_of_counters(record, task[1], task[2])
  found[#found + 1] = task[3] or nil
  if task[4] then
    found[#found + 1] = task[4]
    found[#found + 1] = task[4] .. ':bytes'
  end
  if task[5] then
    found[#found + 1] = claims .. task[5]
  end
  found[#found + 1] = task[6] or nil
  return found
end

-- Whether all keys are declared that the end of a task needs, its webhook's too.
local function may_end(record, claims)
  are_declared(keys_of_end(record, claims))
  return may_note(record)
end

-- Whether the broker has a message of a task's job that no worker has received, or should have it.
local function awaits_claim(record)
  local task = redis.call('HMGET', record, 'status', 'claim_worker', 'claim_retries', 'retries', 'started_retries')
  local retries = tonumber(task[4] or 0)
  return task[1] == 'working' and not (task[2] and tonumber(task[3] or 0) >= retries) and not has_begun(task[5], retries)
end

-- Give a task's job to a worker, and take it from the one that had it, or from the broker. A worker that is not among the
-- `workers` is added, for `holds_ms`: the reaper finds the claims of known workers only.
local function take(record, claims, worker, retries, unclaimed, workers, holds_ms)
  local held = redis.call('HMGET', record, 'claim_worker', 'key')
  if held[1] and held[1] ~= worker then
    on_index('SREM', claims .. held[1], held[2])
  end
  on_index('ZREM', unclaimed, held[2])
  on_index('SADD', claims .. worker, held[2])
  redis.call('PEXPIRE', claims .. worker, INDEX_LIFETIME_MS)
  redis.call('HSET', record, 'claim_worker', worker, 'claim_retries', retries)
  if not on_index('ZSCORE', workers, worker) then
    add_to_index(workers, now_ms() + holds_ms, worker)
  end
  remember(record)
end

-- Take a task off the claims of the worker that has its job; the record still says which that was. `unclaimed`: where
-- the broker may have the job.
local function let_go(record, claims, unclaimed)
  local held = redis.call('HMGET', record, 'claim_worker', 'key', 'claim_retries', 'retries')
  if held[1] then
    on_index('SREM', claims .. held[1], held[2])
  end
  if unclaimed and held[2] and (not held[1] or tonumber(held[4] or 0) > tonumber(held[3] or 0)) then
    on_index('ZREM', unclaimed, held[2])
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
  redis.call('HDEL', record, 'snapshot_key', 'counted_in') -- what they name holds nothing of the task any more
  keep_bytes_of_ended(record, result_bytes or 0)
  remember(record)
end

-- Let go of a task that has ended.
local function let_go_for_good(record, claims, unclaimed, result_bytes)
  let_go(record, claims, unclaimed)
  give_back(record, result_bytes)
end

