-- Move a task: compare status and attempt, set, expire, PUBLISH, in one step.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- KEYS[3]  hash: the questions, which keep an open task `input_required` and go with its end
-- KEYS[4]  hash: the answers
-- KEYS[5]  sorted set: jobs that no worker has received, by since when
-- ARGV[1]  the statuses from which the move is allowed, as ',working,input_required,'
-- ARGV[2]  the attempt that the move is for, or '' for any
-- ARGV[3]  where the move is for a job whose body has not begun: Celery's count of its retries; else ''
-- ARGV[4]  what the names of the workers' claims begin with where the move ends the task, else ''
-- ARGV[5]  when it is made, in ms since the epoch
-- ARGV[6]  the cause, as mcp_celery/engine/transitions.py names it
-- ARGV[7]  where the job was published to run again: when that is to be, in ms since the epoch; else ''
-- ARGV[8]  with ARGV[3], the delivery whose start does not count; else ''
-- ARGV[9…] fields and their new values, in turn
-- Returns  nil when there is no record, else {1 if moved or 0 if refused, flattened record}.
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'started_retries', 'asked', 'started_by')
if not current[1] then
  return nil
end
if first_answer(KEYS[1], ARGV[6], ARGV[5]) then
  return {1, redis.call('HGETALL', KEYS[1])}
end
local begun = ARGV[3] ~= '' and has_begun(current[3], ARGV[3]) and (ARGV[8] == '' or current[5] ~= ARGV[8])
local allowed = string.find(ARGV[1], ',' .. current[1] .. ',', 1, true)
if not allowed or (ARGV[2] ~= '' and ARGV[2] ~= current[2]) or begun then
  return {0, redis.call('HGETALL', KEYS[1])}
end
if ARGV[4] ~= '' then
  may_end(KEYS[1], ARGV[4])
elseif current[4] then
  may_note(KEYS[1]) -- it waits for its client again, where questions are open
end
if ARGV[7] ~= '' then
  are_declared(keys_of_counters(KEYS[1], unpack(redis.call('HMGET', KEYS[1], 'counted_in', 'line'))))
end
if #asked_for > 0 then
  return nil
end
redis.call('HSET', KEYS[1], unpack(ARGV, 9))
if current[4] then
  settle_questions(KEYS[1], KEYS[3], KEYS[4])
end
if ARGV[4] ~= '' then
  let_go_for_good(KEYS[1], ARGV[4], KEYS[5])
end
if ARGV[7] ~= '' and not has_begun(current[3], redis.call('HGET', KEYS[1], 'retries') or 0) then
  -- No job of it runs until then. A retry that has begun before its worker said so keeps the place.
  release_places(KEYS[1], unpack(redis.call('HMGET', KEYS[1], 'key', 'counted_in')))
end
if ARGV[7] ~= '' and awaits_claim(KEYS[1]) then
  add_to_index(KEYS[5], ARGV[7], redis.call('HGET', KEYS[1], 'key'))
end
tell(KEYS[1], KEYS[2], ARGV[5])
note_answer(KEYS[1], ARGV[6], current[1], ARGV[5], 1)
return {1, redis.call('HGETALL', KEYS[1])}
