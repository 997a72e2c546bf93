-- Ask in the middle of a job.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- KEYS[3]  hash: the questions
-- KEYS[4]  hash: the answers
-- KEYS[5]  string: the snapshot of the creating request
-- KEYS[6]  sorted set: every task, by when it expires
-- ARGV[1]  attempt of the job that asks
-- ARGV[2]  now, in ms since the epoch
-- ARGV[3]  until when the task has to live at least, in ms since the epoch, or ''
-- ARGV[4]  the longest life of the task, in ms
-- ARGV[5]  the question's key
-- ARGV[6]  the question
-- Returns  1 if it is asked; 0 when the task is unknown, has ended, or counts another attempt.
if first_answer(KEYS[1], 'asked', ARGV[2]) then
  return 1
end
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt')
if not is_open(current[1]) or current[2] ~= ARGV[1] then
  return 0
end
if redis.call('HEXISTS', KEYS[3], ARGV[5]) == 1 or redis.call('HEXISTS', KEYS[4], ARGV[5]) == 1 then
  return 1
end
if not are_declared(keys_of_life(KEYS[1])) or not may_note(KEYS[1]) then
  return nil
end
keep_question(KEYS[1], KEYS[3], ARGV[5], ARGV[6])
redis.call('HSET', KEYS[1], 'status', 'input_required')
live_until(KEYS[1], {KEYS[3], KEYS[4], KEYS[5]}, KEYS[6], ARGV[3], ARGV[4])
tell(KEYS[1], KEYS[2], ARGV[2])
note_answer(KEYS[1], 'asked', current[1], ARGV[2], 1)
return 1
