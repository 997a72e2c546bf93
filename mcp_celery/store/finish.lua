-- Store a job's result where Celery looks for it, and move its task, in one step: nobody sees one without the other.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- KEYS[3]  string: the job's result; also the channel on which Celery's AsyncResults wait for it
-- ARGV[1]  the statuses from which the move is allowed, as ',working,input_required,'
-- ARGV[2]  the attempt that the move is for
-- ARGV[3]  the result, as the result backend would have encoded it
-- ARGV[4]  its lifetime in seconds where the record is gone, or '' for none; else it lives as long as the record
-- ARGV[5…] fields and their new values, in turn
-- Returns  nil when there is no record, 1 if moved, 0 if refused. The result is stored in any case.
local left = redis.call('PTTL', KEYS[1])
if left > 0 then
  redis.call('SET', KEYS[3], ARGV[3], 'PX', left)
elseif ARGV[4] ~= '' then
  redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[4])
else
  redis.call('SET', KEYS[3], ARGV[3])
end
redis.call('PUBLISH', KEYS[3], ARGV[3])
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt')
if not current[1] then
  return nil
end
if not string.find(ARGV[1], ',' .. current[1] .. ',', 1, true) or ARGV[2] ~= current[2] then
  return 0
end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('PUBLISH', KEYS[2], redis.call('HINCRBY', KEYS[1], 'revision', 1))
return 1
