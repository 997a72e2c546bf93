-- Have a task's job published again, because an operator says so. Its next attempt counts: an earlier one that still runs
-- changes the task no more, and no message of it starts. Only a result that it leaves in another result backend than this
-- Redis completes the task, for all attempts store theirs under one id.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- KEYS[3]  sorted set: jobs that no worker has received, by since when
-- KEYS[4]  sorted set: tasks whose next job is still to be published, by since when
-- ARGV[1]  the task's compound key
-- ARGV[2]  1 where a body that has started and may have had effects is repeated nevertheless, else 0
-- ARGV[3]  the status message of the task
-- ARGV[4]  what the names of the workers' claims begin with
-- ARGV[5]  since when the job is due, in ms before now: so long ago that the next sweep publishes it
-- Returns  'again' when the job is to be published again; 'started' when its body has started and may have had effects;
--          'nothing' when there is no such task, it has ended, waits for an answer, or is one of exposed jobs.
local now = now_ms()
local first = first_answer(KEYS[1], 'requeued', now)
if first then
  return first
end
local task = redis.call('HMGET', KEYS[1], 'status', 'key', 'started_retries', 'retries', 'idempotent', 'work',
  'waits_in')
if task[1] ~= 'working' or task[2] ~= ARGV[1] or task[6] then
  return 'nothing'
end
local begun = has_begun(task[3], tonumber(task[4] or 0))
if begun and task[5] ~= '1' and ARGV[2] ~= '1' then
  return 'started'
end
are_declared(keys_of_waiting(KEYS[1], task[7]))
if not are_declared(keys_of_claim(KEYS[1], ARGV[4])) then
  return 'nothing'
end
let_go(KEYS[1], ARGV[4], KEYS[3])
on_index('ZREM', KEYS[3], ARGV[1])
reset(KEYS[1], RESET_BY_ATTEMPT)
redis.call('HDEL', KEYS[1], 'retry_at_ms', 'start_before_ms')
if task[7] then
  leave_line(KEYS[1], ARGV[1], task[7])
  stop_waiting(KEYS[1], ARGV[1], task[7]) -- it waits again in its old place, if there is still none for it
end
redis.call('HSET', KEYS[1], 'status_message', ARGV[3])
redis.call('HINCRBY', KEYS[1], 'attempt', 1)
add_to_index(KEYS[4], now - ARGV[5], ARGV[1])
remember(KEYS[1])
tell(KEYS[1], KEYS[2], now)
note_answer(KEYS[1], 'requeued', task[1], now, 'again')
return 'again'
