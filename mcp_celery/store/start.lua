-- Let the body of a job begin, once for each (attempt, retries), whatever the broker delivers. Where a limit on running
-- jobs has no place for it, its task waits for one instead: the next attempt counts then, and is due when it has a place.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  string: the snapshot of the creating request
-- KEYS[3]  hash: the questions
-- KEYS[4]  hash: the answers
-- KEYS[5]  channel: the task's changes; the message is the record's new revision
-- KEYS[6]  sorted set: jobs that no worker has received, by since when
-- KEYS[7]  sorted set: tasks whose next job is still to be published, by since when
-- KEYS[8]  sorted set: the workers, by the time until which their last heartbeat holds
-- ARGV[1]  attempt of this delivery
-- ARGV[2]  Celery's count of retries of this delivery
-- ARGV[3]  now, in ms since the epoch
-- ARGV[4]  a name of this delivery, which may ask again when the answer was lost
-- ARGV[5]  the worker, or ''
-- ARGV[6]  what the names of the workers' claims begin with
-- ARGV[7]  the compound key in the message, which may be forged; '' where there is no message
-- ARGV[8]  1 if the version of the component matters, else 0
-- ARGV[9]  the fingerprint of the component that would run; '' where there is none
-- ARGV[10] for how long the start stands for the heartbeat of a worker that has none, in ms
-- Returns  nil when the body must not run; the record's fingerprint where that is another one, and nothing has changed;
--          a number where the task waits for a place: how many tasks are before it;
--          else {the snapshot ('' when it is gone), the leg, flattened answers to what
--          the leg before asked, the fields FIXED, the keys that the end of the task needs}.
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'started_retries', 'started_by',
  'claim_worker', 'claim_retries', 'leg', 'asked', 'parked', 'key', 'fingerprint', 'limits', 'line')
if ARGV[7] ~= '' and ARGV[7] ~= current[10] then
  return nil
end
if current[12] and current[4] == ARGV[4] and current[2] == string.format('%.0f', ARGV[1] + 1) then
  local ahead = number_ahead(KEYS[1], current[10])
  if ahead or #asked_for > 0 then
    return ahead -- this delivery asks again
  end
end
-- A job that comes again may find questions that its body awaited and could not withdraw: they go. Those that a job
-- returned stay, for no job begins until they are answered.
local left_behind = current[1] == 'input_required' and current[8] and not current[9]
if (current[1] ~= 'working' and not left_behind) or current[2] ~= ARGV[1] then
  return nil
end
local again = current[3] == ARGV[2] and current[4] == ARGV[4]
if has_begun(current[3], ARGV[2]) and not again then
  return nil
end
if ARGV[8] == '1' and current[11] and current[11] ~= ARGV[9] then
  return current[11]
end
local limits = current[12] and limits_in(current[12], KEYS[1]) or {}
are_declared(keys_of_limits(KEYS[1], limits))
are_declared(keys_of_turn(KEYS[1], current[13]))
if ARGV[5] ~= '' then
  is_declared(ARGV[6] .. ARGV[5])
end
if not are_declared(keys_of_claim(KEYS[1], ARGV[6])) then
  return nil
end
local limit = take_places(KEYS[1], current[10], limits)
if limit then
  let_go(KEYS[1], ARGV[6])
  on_index('ZREM', KEYS[6], current[10])
  on_index('ZREM', KEYS[7], current[10]) -- that this attempt is with the broker may not have been noted yet
  reset(KEYS[1], RESET_BY_RELEASE)
  wait_for_place(KEYS[1], current[10], limit)
  local ahead = number_ahead(KEYS[1], current[10])
  if left_behind then
    redis.call('DEL', KEYS[3])
  end
  redis.call('HSET', KEYS[1], 'status', 'working', 'status_message', string.format(WAITING_FOR_PLACE, ahead),
    'started_by', ARGV[4])
  redis.call('HINCRBY', KEYS[1], 'attempt', 1)
  remember(KEYS[1])
  tell(KEYS[1], KEYS[5], now_ms())
  note(KEYS[1], 'place_awaited', current[1], now_ms())
  if current[13] then
    leave_window(KEYS[1], current[10], current[13])
  end
  return ahead
end
if current[13] then
  enter_window(KEYS[1], current[10], current[13])
end
redis.call('HSET', KEYS[1], 'started_retries', ARGV[2], 'started_at_ms', ARGV[3], 'started_by', ARGV[4])
if ARGV[5] ~= '' and (current[5] ~= ARGV[5] or current[6] ~= ARGV[2]) then
  -- The claim was not noted, or the broker has delivered the job to another worker since.
  take(KEYS[1], ARGV[6], ARGV[5], ARGV[2], KEYS[6], KEYS[8], ARGV[10])
  redis.call('HSETNX', KEYS[1], 'claim_at_ms', ARGV[3])
  note(KEYS[1], 'claimed', current[1], ARGV[3])
elseif ARGV[5] == '' then
  on_index('ZREM', KEYS[6], current[10])
end
local answers = {}
if current[8] then
  answers = on_index('HGETALL', KEYS[4])
  if not again then
    redis.call('DEL', KEYS[3])
  end
end
if left_behind then
  redis.call('HSET', KEYS[1], 'status', 'working')
  tell(KEYS[1], KEYS[5], ARGV[3])
end
note(KEYS[1], 'started', current[1], ARGV[3])
local needed_then = {}
for _, key in ipairs(keys_of_end(KEYS[1], ARGV[6])) do
  needed_then[#needed_then + 1] = may_be_declared(key) and key or nil
end
return {unless_other_type('GET', KEYS[2]) or '', current[7], answers, redis.call('HMGET', KEYS[1], unpack(FIXED)),
  needed_then}
