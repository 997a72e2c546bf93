-- In front of every script: what several of them do.

-- Milliseconds since the epoch, by the clock that all processes share.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether something may still happen to a task of that status.
local function is_open(status)
  return status == 'working' or status == 'input_required'
end

-- Whether a body has begun (`started`: the retries that the last one to begin was delivered with) with that many retries
-- or more.
local function has_begun(started, retries)
  return started and tonumber(started) >= tonumber(retries)
end

-- Count a change of a task at that time (ms since the epoch), and tell of it. Each change is later than the one before,
-- whatever the clocks of the processes say: clients tell the order of a task's states by their times.
local function tell(record, channel, at)
  local before = tonumber(redis.call('HGET', record, 'updated_at_ms'))
  redis.call('HSET', record, 'updated_at_ms', string.format('%.0f', math.max(tonumber(at), before + 1)))
  redis.call('PUBLISH', channel, redis.call('HINCRBY', record, 'revision', 1))
end

-- Add to an index, which lives on after its last entry.
local function add_to_index(index, score, member)
  redis.call('ZADD', index, score, member)
  redis.call('PEXPIRE', index, INDEX_LIFETIME_MS)
end

-- Keep what the reaper must know of a task when its record has expired: its leg, whether it is open, the worker that has
-- its job, its exposed work, and whether its Celery ids hide its own. Records of the release before do not name the hash.
local function remember(record)
  local task = redis.call('HMGET', record, 'remembered_in', 'key', 'leg', 'status', 'claim_worker', 'work', 'hides_id')
  if task[1] then
    local known = {tonumber(task[3]), is_open(task[4]), task[5], task[6], task[7]}
    redis.call('HSET', task[1], task[2], cjson.encode(known))
    redis.call('PEXPIRE', task[1], INDEX_LIFETIME_MS)
  end
end

-- Let a key live at least that many ms from now.
local function live_at_least(key, left)
  if redis.call('PTTL', key) < tonumber(left) then
    redis.call('PEXPIRE', key, left)
  end
end

-- What is left of a key's life in ms, for another that shall end with it.
local function rest_of_life(key)
  return math.max(redis.call('PTTL', key), 1)
end

