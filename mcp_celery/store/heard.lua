-- What became of an awaited question.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  hash: the questions
-- KEYS[3]  hash: the answers
-- ARGV[1]  attempt of the job that asked
-- ARGV[2]  the question's key
-- Returns  the answer; 1 while the question is open; 0 when it is gone.
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt')
if current[2] ~= ARGV[1] then
  return 0
end
local answer = redis.call('HGET', KEYS[3], ARGV[2])
if answer then
  return answer
end
return current[1] == 'input_required' and redis.call('HEXISTS', KEYS[2], ARGV[2]) or 0
