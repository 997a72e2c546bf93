-- Decide on a task whose job a worker had, and has no longer: the job is published again, or the task fails. A job that
-- had not begun, of a worker that lives or stopped in order, is due: published unless a worker receives it soon.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- KEYS[3]  sorted set: the workers, by the time until which their last heartbeat holds
-- KEYS[4]  set: the worker's claims
-- KEYS[5]  sorted set: tasks whose next job is still to be published, by since when
-- KEYS[6]  hash: the questions, which were asked by the job and go with it
-- KEYS[7]  hash: the answers
-- ARGV[1]  the worker
-- ARGV[2]  the task's compound key
-- ARGV[3]  what happened: 'died', 'stopped' in order, or 'disconnected' from the broker, which takes from a worker what
--          it has not begun
-- ARGV[4]  where it was disconnected, claims from this time on (ms since the epoch) are of the new connection
-- ARGV[5]  how often a job may be published again because its worker died
-- ARGV[6]  the status message of a task that is tried again because its worker died
-- ARGV[7]  how many of the arguments that follow say how it fails because it may have had effects; the rest say how
--          it fails because it was published again too often
-- ARGV[8…] fields and their values, in turn
-- Returns  'alive' when the worker lives after all, 'nothing' when there is nothing to do, 'again' when the job is to be
--          published again, 'failed' when the task has failed.
local now = now_ms()
local beat = on_index('ZSCORE', KEYS[3], ARGV[1])
if ARGV[3] == 'died' and beat and tonumber(beat) > now then
  return 'alive'
end
local function cause_of(answer)
  return answer == 'again' and 'recovered' or 'failed'
end

local first = first_answer(KEYS[1], cause_of, now)
if first then
  return first
end
local task = redis.call('HMGET', KEYS[1], 'status', 'claim_worker', 'claim_retries', 'retries', 'started_retries',
  'idempotent', 'redeliveries', 'claim_at_ms', 'asked', 'key')
local delivered = tonumber(task[3] or 0)
local begun = has_begun(task[5], delivered)
if ARGV[3] == 'disconnected' and (begun or tonumber(task[8] or 0) >= tonumber(ARGV[4])) then
  return 'nothing'
end
if is_open(task[1]) and not may_end(KEYS[1], string.sub(KEYS[4], 1, #KEYS[4] - #ARGV[1])) then
  return nil
end
on_index('SREM', KEYS[4], ARGV[2])
if not is_open(task[1]) or task[2] ~= ARGV[1] or task[10] ~= ARGV[2] then
  return 'nothing'
end
if tonumber(task[4] or 0) > delivered then
  return 'nothing' -- the broker has the message of a retry, which no worker has received
end

local function release()
  reset(KEYS[1], RESET_BY_RELEASE)
  add_to_index(KEYS[5], now, ARGV[2])
end

if not begun and ARGV[3] ~= 'died' then
  release() -- most brokers have it back, and a worker soon has its claim; if none has, it is published
  return 'nothing'
end
local answer = 'failed'
local too_often = 8 + tonumber(ARGV[7])
if begun and task[6] ~= '1' then
  redis.call('HSET', KEYS[1], unpack(ARGV, 8, too_often - 1))
elseif tonumber(task[7] or 0) >= tonumber(ARGV[5]) then
  redis.call('HSET', KEYS[1], unpack(ARGV, too_often))
else
  answer = 'again'
  release()
  reset(KEYS[1], RESET_BY_ATTEMPT)
  if begun then
    redis.call('HDEL', KEYS[1], 'start_before_ms') -- it was in time
  end
  redis.call('HSET', KEYS[1], 'status', 'working', 'status_message', ARGV[6])
  redis.call('HINCRBY', KEYS[1], 'redeliveries', 1)
  redis.call('HINCRBY', KEYS[1], 'attempt', 1)
end
if answer == 'failed' then
  give_back(KEYS[1])
end
if task[9] then
  redis.call('DEL', KEYS[6])
  settle_questions(KEYS[1], KEYS[6], KEYS[7])
end
tell(KEYS[1], KEYS[2], now)
note_answer(KEYS[1], cause_of(answer), task[1], now, answer)
return answer
