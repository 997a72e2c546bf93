-- Ask at the end of a job: the next leg becomes the task's current one, and is due when everything is answered.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- KEYS[3]  hash: the questions
-- KEYS[4]  hash: the answers; under '' what the tool wants back
-- KEYS[5]  string: the snapshot of the creating request
-- KEYS[6]  sorted set: every task, by when it expires
-- ARGV[1]  attempt of the job that asks
-- ARGV[2]  now, in ms since the epoch
-- ARGV[3]  until when the task has to live at least, in ms since the epoch, or ''
-- ARGV[4]  the longest life of the task, in ms
-- ARGV[5]  where the result of the next leg will be kept in this Redis, or ''
-- ARGV[6]  what the tool wants back, as JSON
-- ARGV[7]  what the names of the workers' claims begin with
-- ARGV[8…] keys and their questions, in turn
-- Returns  1 if it is asked; 0 when the task is unknown, has ended, or counts another attempt.
if first_answer(KEYS[1], 'parked', ARGV[2]) then
  return 1
end
local current = redis.call('HMGET', KEYS[1], 'status', 'attempt')
if not is_open(current[1]) or current[2] ~= ARGV[1] then
  return 0
end
are_declared(keys_of_life(KEYS[1]))
if not may_end(KEYS[1], ARGV[7]) then
  return nil
end
redis.call('DEL', KEYS[3], KEYS[4])
redis.call('HSET', KEYS[4], '', ARGV[6])
for i = 8, #ARGV, 2 do
  keep_question(KEYS[1], KEYS[3], ARGV[i], ARGV[i + 1])
end
let_go(KEYS[1], ARGV[7])
reset(KEYS[1], RESET_BY_LEG)
redis.call('HSET', KEYS[1], 'status', 'input_required', 'parked', '1')
redis.call('HINCRBY', KEYS[1], 'leg', 1)
redis.call('HINCRBY', KEYS[1], 'attempt', 1)
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[1], 'result_key', ARGV[5])
end
remember(KEYS[1])
local known = live_until(KEYS[1], {KEYS[3], KEYS[4], KEYS[5]}, KEYS[6], ARGV[3], ARGV[4])
release_places(KEYS[1], known[3], known[6]) -- it has no job while it waits
tell(KEYS[1], KEYS[2], ARGV[2])
note_answer(KEYS[1], 'parked', current[1], ARGV[2], 1)
return 1
