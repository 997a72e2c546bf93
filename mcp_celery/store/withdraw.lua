-- Forget awaited questions, and their answers.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- KEYS[3]  hash: the questions
-- KEYS[4]  hash: the answers
-- ARGV[1]  attempt of the job that asked
-- ARGV[2]  now, in ms since the epoch
-- ARGV[3…] the questions' keys
-- Returns  the answers that had come, each where its key stands, false for none.
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt')
if current[2] ~= ARGV[1] then
  return {}
end
local answers = redis.call('HMGET', KEYS[4], unpack(ARGV, 3))
redis.call('HDEL', KEYS[4], unpack(ARGV, 3))
if redis.call('HDEL', KEYS[3], unpack(ARGV, 3)) == 0 then
  return answers
end
if current[1] == 'input_required' and redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('HSET', KEYS[1], 'status', 'working')
end
tell(KEYS[1], KEYS[2], ARGV[2])
note(KEYS[1], 'withdrawn', current[1], ARGV[2])
return answers
