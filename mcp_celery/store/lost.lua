-- Decide on a task whose job the broker has lost, as it seems: the job is due, or the task fails. The attempt stays the
-- same, for the message may turn up after all: a body starts once for each attempt, whichever message brings it.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- KEYS[3]  sorted set: jobs that no worker has received, by since when
-- KEYS[4]  sorted set: tasks whose next job is still to be published, by since when
-- ARGV[1]  the task's compound key
-- ARGV[2]  since when it was unclaimed when it was taken for lost, in ms since the epoch
-- ARGV[3]  how often a job may be published again
-- ARGV[4]  the status message of a task whose job is published again
-- ARGV[5]  what the names of the workers' claims begin with
-- ARGV[6…] fields of a task that fails and their values, in turn
-- Returns  'nothing' when a worker has received the job meanwhile, or the task has ended; 'again' when the job is to be
--          published again; 'failed' when the task has failed.
local function cause_of(answer)
  return answer == 'again' and 'recovered' or 'failed'
end

local now = now_ms()
local first = first_answer(KEYS[1], cause_of, now)
if first then
  return first
end
local since = on_index('ZSCORE', KEYS[3], ARGV[1])
if not since or tonumber(since) ~= tonumber(ARGV[2]) then
  return 'nothing'
end
are_declared(keys_of_claim(KEYS[1], ARGV[5]))
if not may_end(KEYS[1], ARGV[5]) then
  return nil
end
redis.call('ZREM', KEYS[3], ARGV[1])
local task = redis.call('HMGET', KEYS[1], 'status', 'redeliveries', 'key')
if task[3] ~= ARGV[1] or not awaits_claim(KEYS[1]) then
  return 'nothing'
end
local answer
if tonumber(task[2] or 0) >= tonumber(ARGV[3]) then
  answer = 'failed'
  redis.call('HSET', KEYS[1], unpack(ARGV, 6))
  let_go_for_good(KEYS[1], ARGV[5])
else
  answer = 'again'
  let_go(KEYS[1], ARGV[5]) -- a job that runs again is still among the claims of the worker that had it before
  reset(KEYS[1], RESET_BY_RELEASE)
  add_to_index(KEYS[4], now, ARGV[1])
  redis.call('HSET', KEYS[1], 'status_message', ARGV[4])
  redis.call('HINCRBY', KEYS[1], 'redeliveries', 1)
end
tell(KEYS[1], KEYS[2], now)
note_answer(KEYS[1], cause_of(answer), task[1], now, answer)
return answer
