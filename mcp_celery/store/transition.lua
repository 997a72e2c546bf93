-- Move a task: compare status and attempt, set, expire, PUBLISH, in one step.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- KEYS[3]  hash: the questions, which keep an open task `input_required` and go with its end
-- KEYS[4]  hash: the answers
-- ARGV[1]  the statuses from which the move is allowed, as ',working,input_required,'
-- ARGV[2]  the attempt that the move is for, or '' for any
-- ARGV[3]  where the move is for a job whose body has not begun: Celery's count of its retries; else ''
-- ARGV[4]  what the names of the workers' claims begin with where the move ends the task, else ''
-- ARGV[5]  when it is made, in ms since the epoch
-- ARGV[6]  the cause, as mcp_celery/engine/transitions.py names it
-- ARGV[7…] fields and their new values, in turn
-- Returns  nil when there is no record, else {1 if moved or 0 if refused, flattened record}.
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'started_retries', 'asked')
if not current[1] then
  return nil
end
local begun = ARGV[3] ~= '' and has_begun(current[3], ARGV[3])
local allowed = string.find(ARGV[1], ',' .. current[1] .. ',', 1, true)
if not allowed or (ARGV[2] ~= '' and ARGV[2] ~= current[2]) or begun then
  return {0, redis.call('HGETALL', KEYS[1])}
end
redis.call('HSET', KEYS[1], unpack(ARGV, 7))
if current[4] then
  settle_questions(KEYS[1], KEYS[3], KEYS[4])
end
if ARGV[4] ~= '' then
  let_go_for_good(KEYS[1], ARGV[4])
end
tell(KEYS[1], KEYS[2], ARGV[5])
note(KEYS[1], ARGV[6], current[1], ARGV[5])
return {1, redis.call('HGETALL', KEYS[1])}
