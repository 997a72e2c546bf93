-- Hand a job back that has not started, because the worker that received it has another version of the component than
-- the server. The next attempt counts from now on, and is due after a pause.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- KEYS[3]  sorted set: the workers, by the time until which their last heartbeat holds
-- KEYS[4]  sorted set: tasks whose next job is still to be published, by since when
-- KEYS[5]  hash: the questions
-- KEYS[6]  sorted set: jobs that no worker has received, by since when
-- ARGV[1]  attempt of this delivery
-- ARGV[2]  Celery's count of retries of this delivery
-- ARGV[3]  the worker
-- ARGV[4]  the compound key in the message, which may be forged
-- ARGV[5]  how often a job is handed back
-- ARGV[6]  how long all pauses together may be, in ms
-- ARGV[7]  the pause after the first time, in ms, which doubles with each further one
-- ARGV[8]  the longest pause, in ms
-- ARGV[9]  the part of the pause to wait, within 0.5…1
-- ARGV[10] the status message of a task whose job was handed back
-- ARGV[11] what the names of the workers' claims begin with
-- ARGV[12] what the names of the workers' components begin with
-- It asks for the components of the other live workers.
-- Returns  {verdict, pause in ms}, the verdict as mcp_celery/engine/handback.py names it.
local task = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'started_retries', 'asked', 'parked', 'key', 'fingerprint',
  'handbacks', 'handback_pauses_ms', 'start_before_ms', 'started_at_ms')
local now = now_ms()
local first_pause = first_answer(KEYS[1], 'handed_back', now)
if first_pause then
  return {'handed back', tonumber(first_pause)}
end
-- As in start.lua: questions that a body awaited and could not withdraw.
local left_behind = task[1] == 'input_required' and task[4] and not task[5]
if (task[1] ~= 'working' and not left_behind) or task[2] ~= ARGV[1] or task[6] ~= ARGV[4]
  or has_begun(task[3], ARGV[2]) then
  return {'superseded', 0}
end
local is_late = task[10] and not task[11] and now > tonumber(task[10])
local elsewhere = false
if task[7] and not is_late then
  local live = on_index('ZRANGEBYSCORE', KEYS[3], '(' .. now, '+inf')
  for _, worker in ipairs(live) do
    if worker ~= ARGV[3] then
      is_declared(ARGV[12] .. worker)
    end
  end
  if not are_declared(keys_of_claim(KEYS[1], ARGV[11])) then
    return {'nowhere', 0}
  end
  for _, worker in ipairs(live) do
    if worker ~= ARGV[3] and unless_other_type('HEXISTS', ARGV[12] .. worker, task[7]) == 1 then
      elsewhere = true
      break
    end
  end
end
if not elsewhere then
  return {'nowhere', 0}
end
local number = tonumber(task[8] or 0)
if number >= tonumber(ARGV[5]) or tonumber(task[9] or 0) >= tonumber(ARGV[6]) then
  return {'too often', 0}
end
local pause = math.floor(ARGV[9] * math.min(ARGV[7] * 2 ^ math.min(number, 16), ARGV[8]))
let_go(KEYS[1], ARGV[11], KEYS[6])
reset(KEYS[1], RESET_BY_RELEASE)
redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HINCRBY', KEYS[1], 'handbacks', 1)
redis.call('HINCRBY', KEYS[1], 'handback_pauses_ms', pause)
if left_behind then
  redis.call('DEL', KEYS[5])
  redis.call('HSET', KEYS[1], 'status', 'working')
end
if left_behind or number == 0 then
  redis.call('HSET', KEYS[1], 'status_message', ARGV[10])
  tell(KEYS[1], KEYS[2], now)
end
add_to_index(KEYS[4], now + pause, task[6])
remember(KEYS[1])
note_answer(KEYS[1], 'handed_back', task[1], now, pause)
return {'handed back', pause}
