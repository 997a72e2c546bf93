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

-- Tell those who listen to a channel. On a Redis Cluster channels are of sharded pub/sub, which no other shard hears of;
-- before version 7 there is none.
local function publish(channel, message)
  if SHARDED then
    local reply = redis.pcall('SPUBLISH', channel, message)
    if type(reply) ~= 'table' or not reply.err then
      return
    end
    if not string.find(reply.err, 'nknown Redis command', 1, true) then
      redis.call('SPUBLISH', channel, message) -- raises the error
    end
  end
  redis.call('PUBLISH', channel, message)
end

-- Count a change of a task at that time (ms since the epoch), and announce it. Each change is later than the one before,
-- whatever the clocks of the processes say: clients order a task's states by their times.
local function tell(record, channel, at)
  local before = tonumber(redis.call('HGET', record, 'updated_at_ms'))
  redis.call('HSET', record, 'updated_at_ms', string.format('%.0f', math.max(tonumber(at), before + 1)))
  publish(channel, redis.call('HINCRBY', record, 'revision', 1))
end

-- What this script removed because it cannot be read: {key, member}, or {key, false} for a whole key. The reply says so (reply.lua).
local removed_as_unreadable = {}

-- What this script changed of tasks. The reply says so (reply.lua), and the process that called the script notifies its
-- observers (mcp_celery/engine/transitions.py).
local transitions = {}

-- Remove a member that cannot be read from an index (`command`: ZREM, SREM or HDEL).
local function remove_unreadable(command, index, member)
  redis.call(command, index, member)
  removed_as_unreadable[#removed_as_unreadable + 1] = {index, member}
end

-- Call a command. Returns nil where the key holds another type than the command is for, and where another node of a
-- cluster has the key.
local function unless_other_type(command, key, ...)
  if (SHARDED or WITHIN ~= '') and not DECLARED[key] then
    return nil
  end
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then
    return reply
  end
  for _, reason in ipairs({'WRONGTYPE', 'not an integer'}) do
    if string.find(reply.err, reason, 1, true) then
      return nil
    end
  end
  return redis.call(command, key, ...) -- raises the error
end

-- Call a command on a key that all tasks share. One of another type would stop every task, so it is deleted first.
local function on_index(command, index, ...)
  local reply = unless_other_type(command, index, ...)
  if reply == nil then
    redis.call('DEL', index)
    removed_as_unreadable[#removed_as_unreadable + 1] = {index, false}
    reply = redis.call(command, index, ...)
  end
  return reply
end

-- Add to an index, which lives on after its last entry.
local function add_to_index(index, score, member)
  on_index('ZADD', index, score, member)
  redis.call('PEXPIRE', index, INDEX_LIFETIME_MS)
end

-- Whether a record names the outbox of its own server; else the field is forged.
local function is_outbox(record, name)
  local root = string.match(name or '', '^(.*):webhooks$')
  return root and string.sub(record, 1, #root + 6) == root .. ':task:'
end

-- The id of the webhook that a change of a task makes.
local function id_of_webhook(key, revision)
  return 'msg_' .. redis.sha1hex(tostring(key) .. ':' .. tostring(revision))
end

-- The keys of the webhook that the next change of a task makes, if any: `note` needs them. `task`: its fields key,
-- revision and webhooks_in.
local function keys_of_webhook(record, task)
  if not is_outbox(record, task[3]) then
    return {}
  end
  local next_one = string.format('%.0f', (tonumber(task[2]) or 0) + 1)
  return {task[3], task[3] .. ':' .. id_of_webhook(task[1], next_one)}
end

-- Whether the keys of that webhook are declared.
local function may_note(record)
  return are_declared(keys_of_webhook(record, redis.call('HMGET', record, 'key', 'revision', 'webhooks_in')))
end

-- Keep a webhook for delivery, with what it tells of the task: it may outlive the record. Where the record does not name
-- the outbox of its own server nothing is kept.
-- `task`: the record's fields key, declared_as, status, attempt, leg, created_at_ms, started_at_ms, is_error, webhooks_in.
local function keep_webhook(record, task)
  if not is_outbox(record, task[9]) then
    return
  end
  if on_index('ZCARD', task[9]) >= MOST_WEBHOOKS then
    return
  end
  local known = redis.call('HMGET', record, 'revision', 'updated_at_ms', 'webhook_contents', 'status_message')
  local id = id_of_webhook(task[1], known[1])
  local webhook = task[9] .. ':' .. id
  local told = {'key', task[1] or '', 'status', task[3], 'created_at_ms', task[6] or '', 'at_ms', known[2] or '',
    'sequence', known[1] or ''}
  local function tell_too(name, value)
    if value then
      told[#told + 1] = name
      told[#told + 1] = value
    end
  end
  tell_too('declared_as', task[2])
  tell_too('is_error', task[8])
  tell_too('status_message', known[3] and known[4])
  on_index('HSET', webhook, unpack(told))
  redis.call('PEXPIRE', webhook, WEBHOOK_LIFETIME_MS)
  add_to_index(task[9], now_ms(), id)
end

-- Note a change of a task that the record has by now, and keep its webhook where the change makes one: the task has ended,
-- or has come to wait for its client. `before`: its status before; `at`: ms since the epoch.
local function note(record, cause, before, at)
  local task = redis.call('HMGET', record, 'key', 'declared_as', 'status', 'attempt', 'leg', 'created_at_ms',
    'started_at_ms', 'is_error', 'webhooks_in')
  transitions[#transitions + 1] = {cause, before, string.format('%.0f', tonumber(at)), unpack(task, 1, 8)}
  local is_news = task[3] and task[3] ~= before and (task[3] == 'input_required' or not is_open(task[3]))
  if task[9] and is_news and is_open(before) then
    keep_webhook(record, task)
  end
end

-- Keep what the reaper must know of a task when its record has expired: its leg, its status, the worker that has its job,
-- its exposed work, what its Celery ids hide, its attempt, and what its component is declared as. Records of the release
-- before do not name the hash.
-- `call`: on_index where the record has just been written; else its fields may be forged, and no key that they name is
-- deleted.
local function remember(record, call)
  local task = redis.call('HMGET', record, 'remembered_in', 'key', 'leg', 'status', 'claim_worker', 'work', 'hidden',
    'attempt', 'declared_as')
  if task[1] then
    local known = {tonumber(task[3]), task[4], task[5], task[6], task[7], tonumber(task[8]), task[9]}
    call = call or unless_other_type
    call('HSET', task[1], task[2], cjson.encode(known))
    redis.call('PEXPIRE', task[1], INDEX_LIFETIME_MS)
  end
end

-- Delete fields of a record: one of the lists RESET_BY_… that are made from fields.py.
local function reset(record, fields)
  redis.call('HDEL', record, unpack(fields))
end

-- The counters that an open task occupies: sorted sets of compound keys, by when the tasks expire. A record names one a
-- line.
local function counters(counted_in)
  local found = {}
  for counter in string.gmatch(counted_in or '', '[^\n]+') do
    found[#found + 1] = counter
  end
  return found
end

-- Let a key live at least that many ms from now.
local function live_at_least(key, left)
  if redis.call('PTTL', key) < tonumber(left) then
    redis.call('PEXPIRE', key, left)
  end
end

-- What is left of a key's life in ms, for another that is to end with it.
local function rest_of_life(key)
  return math.max(redis.call('PTTL', key), 1)
end

