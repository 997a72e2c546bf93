-- Store a job's result where Celery looks for it, and move its task, in one step: no reader sees one without the other.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- KEYS[3]  string: the job's result; under another name than the namespace's also the channel on which Celery's
--          AsyncResults wait for it
-- KEYS[4]  hash: the questions, which go with the task's end
-- KEYS[5]  hash: the answers
-- KEYS[6]  sorted set: every task that the reaper looks at, by when it expires
-- KEYS[7]  hash: what is known of tasks when their records have expired
-- KEYS[8]  sorted set: tasks that the reaper need not look at, by when they expire
-- ARGV[1]  the statuses from which the move is allowed, as ',working,input_required,'
-- ARGV[2]  the attempt that the move is for
-- ARGV[3]  the result, as the result backend would have encoded it
-- ARGV[4]  what the names of the workers' claims begin with
-- ARGV[5]  when it is made, in ms since the epoch
-- ARGV[6]  the cause, as mcp_celery/engine/transitions.py names it
-- ARGV[7…] fields and their new values, in turn
-- Returns  nil when there is no record, 1 if moved, 0 if refused. The result lives as long as the record. That of a
--          refused move is not stored: it would stand in the way of the attempt that counts.
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'asked', 'key', 'leg')
if not current[1] then
  return nil
end
if first_answer(KEYS[1], ARGV[6], ARGV[5]) then
  return 1
end
if not string.find(ARGV[1], ',' .. current[1] .. ',', 1, true) or ARGV[2] ~= current[2] then
  return 0
end
if not may_end(KEYS[1], ARGV[4]) then
  return nil
end
redis.call('SET', KEYS[3], ARGV[3], 'PX', rest_of_life(KEYS[1]))
-- Processes that wait for a result listen only where Celery's own backend keeps it, under a name of its own.
local root = string.sub(ARGV[4], 1, -#'claims:' - 1)
if string.sub(KEYS[3], 1, #root) ~= root then
  redis.call('PUBLISH', KEYS[3], ARGV[3])
end
redis.call('HSET', KEYS[1], unpack(ARGV, 7))
if current[3] then
  settle_questions(KEYS[1], KEYS[4], KEYS[5])
end
let_go_for_good(KEYS[1], ARGV[4], nil, #ARGV[3])
-- The result ends with the record: no job is left to revoke, and no result to forget. Those of earlier legs are left.
local ends = current[5] == '1' and on_index('ZSCORE', KEYS[6], current[4])
if ends then
  redis.call('ZREM', KEYS[6], current[4])
  on_index('HDEL', KEYS[7], current[4])
  add_to_index(KEYS[8], ends, current[4])
end
tell(KEYS[1], KEYS[2], ARGV[5])
note_answer(KEYS[1], ARGV[6], current[1], ARGV[5], 1)
return 1
