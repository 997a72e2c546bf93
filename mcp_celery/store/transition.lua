-- Move a task: compare status and attempt, set, expire, PUBLISH, in one step.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- ARGV[1]  the statuses from which the move is allowed, as ',working,input_required,'
-- ARGV[2]  the attempt that the move is for, or '' for any
-- ARGV[3]  1 if the move is for a task whose body has not begun, else 0
-- ARGV[4]  when the record expires from now on, in ms since the epoch, or '' to leave it
-- ARGV[5…] fields and their new values, in turn
-- Returns  nil when there is no record, else {1 if moved or 0 if refused, flattened record}.
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt', 'started_retries')
if not current[1] then
  return nil
end
local allowed = string.find(ARGV[1], ',' .. current[1] .. ',', 1, true)
if not allowed or (ARGV[2] ~= '' and ARGV[2] ~= current[2]) or (ARGV[3] == '1' and current[3]) then
  return {0, redis.call('HGETALL', KEYS[1])}
end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
local revision = redis.call('HINCRBY', KEYS[1], 'revision', 1)
if ARGV[4] ~= '' then
  redis.call('PEXPIREAT', KEYS[1], ARGV[4])
end
redis.call('PUBLISH', KEYS[2], revision)
return {1, redis.call('HGETALL', KEYS[1])}
